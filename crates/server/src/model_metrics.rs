//! Metrics of models, named as vLLM names its own, so that dashboards made for it show this platform.
//!
//! They come from what the edges wrote of finished questions and from what they report of those under way: nobody
//! asks an engine, which would wake it. Kept per service and model; a service without a question since the start of
//! this process has none.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tram_edge::link::Report;
use tram_store::Attributed;
use tram_types::inference::Outcome;
use uuid::Uuid;

/// Upper bounds of the time to a first token, in seconds: vLLM's, without those that nobody waits for.
const FIRST_TOKEN_SECONDS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 60.0,
];
/// Upper bounds of the time between tokens, in seconds: vLLM's.
const TOKEN_SECONDS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// Upper bounds of the time of a question, in seconds: vLLM's.
const REQUEST_SECONDS: [f64; 14] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
];
/// Services and models with series of their own; when there are more, all begin anew.
const SERIES_MAX: usize = 2_000;
/// Tokens of one answer that are looked at one by one.
const TOKENS_OBSERVED_MAX: u64 = 100_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    model_name: String,
    service: String,
    service_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    model_name: String,
    service: String,
    service_id: String,
    finished_reason: &'static str,
}

/// What is known of the models that are asked.
#[derive(Debug)]
pub struct ModelMetrics {
    registry: Registry,
    prompt_tokens: Family<Labels, Counter>,
    generation_tokens: Family<Labels, Counter>,
    cache_queries: Family<Labels, Counter>,
    cache_hits: Family<Labels, Counter>,
    ended: Family<EndedLabels, Counter>,
    first_token: Family<Labels, Histogram>,
    between_tokens: Family<Labels, Histogram>,
    whole: Family<Labels, Histogram>,
    queued: Family<Labels, Histogram>,
    running: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    /// The labels of each service's last question.
    known: Mutex<HashMap<Uuid, Labels>>,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelMetrics {
    /// Nothing was asked yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let first_token =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(FIRST_TOKEN_SECONDS));
        let between_tokens =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(TOKEN_SECONDS));
        let whole = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(REQUEST_SECONDS));
        let queued = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(REQUEST_SECONDS));
        let it = Self {
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            cache_queries: Family::default(),
            cache_hits: Family::default(),
            ended: Family::default(),
            first_token,
            between_tokens,
            whole,
            queued,
            running: Family::default(),
            waiting: Family::default(),
            known: Mutex::default(),
            registry: Registry::default(),
        };
        for (name, help, counter) in [
            ("vllm:prompt_tokens", "Tokens of prompts", &it.prompt_tokens),
            (
                "vllm:generation_tokens",
                "Tokens of answers",
                &it.generation_tokens,
            ),
            (
                "vllm:prefix_cache_queries",
                "Tokens of prompts that were looked for in the cache",
                &it.cache_queries,
            ),
            (
                "vllm:prefix_cache_hits",
                "Tokens of prompts that were found in the cache",
                &it.cache_hits,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "vllm:request_success",
            "Questions by how they ended",
            it.ended.clone(),
        );
        for (name, help, histogram) in [
            (
                "vllm:time_to_first_token_seconds",
                "From the arrival of a question to the first byte of its answer",
                &it.first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between tokens, as the mean of each answer",
                &it.between_tokens,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From the arrival of a question to its end",
                &it.whole,
            ),
            (
                "vllm:request_queue_time_seconds",
                "Until an instance could take a question",
                &it.queued,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        for (name, help, gauge) in [
            (
                "vllm:num_requests_running",
                "Questions that instances have",
                &it.running,
            ),
            (
                "vllm:num_requests_waiting",
                "Questions that wait for a wake",
                &it.waiting,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self { registry, ..it }
    }

    /// These questions are over.
    pub fn counted(&self, records: &[Attributed]) {
        for it in records {
            self.count(it);
        }
    }

    fn count(&self, it: &Attributed) {
        let record = &it.record;
        let labels = Labels {
            // Not as it was asked: there are as many series as models that serve.
            model_name: it.served.clone(),
            service: it.service_path.clone(),
            service_id: record.service_id.to_string(),
        };
        self.remember(record.service_id.uuid(), &labels);
        let add = |family: &Family<Labels, Counter>, count: u64| {
            family.get_or_create(&labels).inc_by(count);
        };
        add(&self.prompt_tokens, record.prompt_tokens);
        add(&self.generation_tokens, record.completion_tokens);
        add(&self.cache_queries, record.prompt_tokens);
        add(&self.cache_hits, record.cached_tokens);
        let ended = EndedLabels {
            model_name: labels.model_name.clone(),
            service: labels.service.clone(),
            service_id: labels.service_id.clone(),
            finished_reason: match record.outcome {
                Outcome::Complete => "complete",
                Outcome::ClientLeft => "abort",
                Outcome::Refused => "refused",
                Outcome::Failed => "error",
            },
        };
        self.ended.get_or_create(&ended).inc();
        let observe = |family: &Family<Labels, Histogram>, ms: u64| {
            family
                .get_or_create(&labels)
                .observe(Duration::from_millis(ms).as_secs_f64());
        };
        observe(&self.whole, record.duration_ms);
        observe(&self.queued, record.queue_ms);
        let Some(first) = record.ttft_ms else {
            return;
        };
        observe(&self.first_token, first);
        let gaps = record
            .completion_tokens
            .saturating_sub(1)
            .min(TOKENS_OBSERVED_MAX);
        let writing = Duration::from_millis(record.duration_ms.saturating_sub(first));
        let Ok(divisor) = u32::try_from(gaps) else { return };
        if let Some(gap) = writing.checked_div(divisor).filter(|gap| !gap.is_zero()) {
            let histogram = self.between_tokens.get_or_create(&labels);
            for _ in 0..gaps {
                histogram.observe(gap.as_secs_f64());
            }
        }
    }

    /// What an edge has under way.
    pub fn traffic(&self, report: &Report) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for service in &report.services {
            if let Some(labels) = known.get(&service.service_id) {
                let running = service.in_flight.saturating_sub(service.queued);
                self.running.get_or_create(labels).set(i64::from(running));
                self.waiting.get_or_create(labels).set(i64::from(service.queued));
            }
        }
    }

    /// As text, without the line that ends an exposition.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text.strip_suffix("# EOF\n")
            .map(str::to_owned)
            .unwrap_or_default()
    }

    fn remember(&self, service: Uuid, labels: &Labels) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&service) {
            Some(before) if before == labels => {}
            // Another model, or another name: gauges of the former would stand still for ever.
            Some(before) => {
                self.running.remove(before);
                self.waiting.remove(before);
                known.insert(service, labels.clone());
            }
            None => {
                if known.len() >= SERIES_MAX {
                    known.clear();
                    self.clear();
                }
                known.insert(service, labels.clone());
                self.running.get_or_create(labels).set(0);
                self.waiting.get_or_create(labels).set(0);
            }
        }
    }

    fn clear(&self) {
        for family in [
            &self.prompt_tokens,
            &self.generation_tokens,
            &self.cache_queries,
            &self.cache_hits,
        ] {
            family.clear();
        }
        for family in [&self.first_token, &self.between_tokens, &self.whole, &self.queued] {
            family.clear();
        }
        self.ended.clear();
        self.running.clear();
        self.waiting.clear();
    }
}
