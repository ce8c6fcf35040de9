//! How full the engine is: `GET /metrics` for Prometheus, `GET /v1/engine/state` for whoever routes requests.

use std::fmt::Write;
use std::time::Duration;

use hyper::header::HeaderValue;
use serde_json::{Value, json};

use super::Served;
use crate::engine::{Figures, Histogram};

/// Metrics are named as vLLM names its own, after this.
const PREFIX: &str = "tram_engine:";

/// The state, in numbers of requests, tokens and seconds.
pub(super) fn state(served: &Served) -> Value {
    let figures = served.engine.figures();
    let seconds = |estimate: Option<Duration>| estimate.map(|time| time.as_secs_f64());
    json!({
        "model": served.name,
        "context_length": served.model.context_length,
        "queue": {
            "waiting": figures.waiting,
            "prompt_tokens_ahead": figures.prompt_tokens_ahead,
        },
        "batch": {
            "running": figures.running,
            "slots": served.answers_max,
        },
        "cache": {
            "cells": figures.cells,
            "cells_free": figures.cells_free,
            "cells_used": figures.cells - figures.cells_free,
            "cells_available": figures.cells_available,
            "prefixes": figures.prefixes_kept,
        },
        "speed": {
            "prefill_tokens_per_second": figures.prefill_rate,
            "decode_step_seconds": figures.decode_step,
        },
        // None: nothing was measured yet, which is not the same as zero.
        "time_to_first_token_seconds": seconds(figures.first_token_estimate(0)),
    })
}

/// What a router needs to know, on one line: JSON in a header, since it comes with every answer to one that asks.
pub(super) fn header(figures: &Figures) -> Option<HeaderValue> {
    let state = json!({
        "prompt_tokens_ahead": figures.prompt_tokens_ahead,
        "running": figures.running,
        "waiting": figures.waiting,
        "cells": figures.cells,
        "prefill_tokens_per_second": figures.prefill_rate,
        "decode_step_seconds": figures.decode_step,
    });
    HeaderValue::from_str(&state.to_string()).ok()
}

/// The metrics in Prometheus's text format; while the model loads, only that it does.
pub(super) fn metrics(served: Option<&Served>) -> String {
    let mut out = String::new();
    let ready = i32::from(served.is_some());
    let _ = writeln!(
        out,
        "# HELP {PREFIX}ready Whether the model is loaded.\n# TYPE {PREFIX}ready gauge\n{PREFIX}ready {ready}"
    );
    if let Some(served) = served {
        let mut page = Page {
            out,
            label: format!("model_name=\"{}\"", escape(&served.name)),
        };
        page.figures(&served.engine.figures());
        out = page.out;
    }
    out
}

struct Page {
    out: String,
    label: String,
}

impl Page {
    fn figures(&mut self, figures: &Figures) {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
        let float = |count: u64| count as f64;
        let size = |count: usize| float(count as u64);
        let used = size(figures.cells - figures.cells_available) / size(figures.cells.max(1));
        let gauges = [
            (
                "num_requests_running",
                "Answers being generated.",
                size(figures.running),
            ),
            (
                "num_requests_waiting",
                "Requests that wait.",
                size(figures.waiting),
            ),
            (
                "kv_cache_usage_perc",
                "Share of the cache that running requests hold, 1 is all.",
                used,
            ),
            (
                "prefixes_cached",
                "Sequences kept for prompts that begin so.",
                size(figures.prefixes_kept),
            ),
        ];
        for (name, help, value) in gauges {
            self.one(name, help, "gauge", "", value);
        }
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts.", figures.prompt_tokens),
            (
                "generation_tokens_total",
                "Tokens generated.",
                figures.generated_tokens,
            ),
            (
                "prefix_cache_queries_total",
                "Tokens looked for in the cache.",
                figures.prompt_tokens,
            ),
            (
                "prefix_cache_hits_total",
                "Tokens found in the cache.",
                figures.cached_tokens,
            ),
            (
                "prefix_cache_recalled_tokens_total",
                "Tokens computed before the start and taken up.",
                figures.recalled_tokens,
            ),
            (
                "num_preemptions_total",
                "Answers that gave way to others.",
                figures.preempted,
            ),
            (
                "requests_cancelled_total",
                "Answers whose client left.",
                figures.cancelled,
            ),
            ("iterations_total", "Steps of the engine.", figures.steps),
        ];
        for (name, help, value) in counters {
            self.one(name, help, "counter", "", float(value));
        }
        let guessed = [
            (
                "spec_decode_num_draft_tokens_total",
                "Tokens guessed, by who did.",
                figures.guessed_tokens,
                figures.drafted_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens_total",
                "Tokens guessed right, by who did.",
                figures.right_tokens,
                figures.drafted_right_tokens,
            ),
        ];
        for (name, help, all, drafted) in guessed {
            self.one(name, help, "counter", "kind=\"text\"", float(all - drafted));
            self.line(name, "kind=\"draft\"", float(drafted));
        }
        self.one(
            "spec_decode_draft_seconds_total",
            "Time that the draft has computed.",
            "counter",
            "",
            figures.draft_seconds,
        );
        let name = "request_success_total";
        self.one(
            name,
            "Answers, by how they ended.",
            "counter",
            "finished_reason=\"stop\"",
            float(figures.ended_stop),
        );
        self.line(name, "finished_reason=\"length\"", float(figures.ended_length));
        let histograms = [
            (
                "time_to_first_token_seconds",
                "From a request to its first token.",
                &figures.first_token,
            ),
            (
                "inter_token_latency_seconds",
                "From a token to the next.",
                &figures.between_tokens,
            ),
            (
                "request_queue_time_seconds",
                "From a request to its place in the batch.",
                &figures.queued,
            ),
            (
                "e2e_request_latency_seconds",
                "From a request to its last token.",
                &figures.request,
            ),
        ];
        for (name, help, histogram) in histograms {
            self.histogram(name, help, histogram);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(
            self.out,
            "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}"
        );
    }

    fn line(&mut self, name: &str, more: &str, value: f64) {
        let comma = if more.is_empty() { "" } else { "," };
        let _ = writeln!(self.out, "{PREFIX}{name}{{{}{comma}{more}}} {value}", self.label);
    }

    fn one(&mut self, name: &str, help: &str, kind: &str, more: &str, value: f64) {
        self.head(name, help, kind);
        self.line(name, more, value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
        for (at, count) in histogram.counts.iter().enumerate() {
            sum += count;
            let bound = histogram
                .bounds
                .get(at)
                .map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line(&bucket, &format!("le=\"{bound}\""), sum as f64);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
        self.line(&format!("{name}_count"), "", sum as f64);
    }
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
