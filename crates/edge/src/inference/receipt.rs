//! What a question cost, written down once: before the last byte of its answer goes out, or when it ends otherwise.

use std::time::{Duration, Instant};

use http::StatusCode;
use tram_types::inference::{MODEL_MAX_BYTES, Outcome, TokenRecord};
use tram_types::{DeploymentId, Timestamp};

use crate::usage::Journal;

use super::told::Usage;

/// The status of a question whose client left before an answer began; nginx's.
const CLIENT_LEFT: u16 = 499;

/// A record that is written when this is dropped, as of a client that left, unless it was before.
#[derive(Debug)]
pub(super) struct Receipt {
    journal: Journal,
    record: Option<Box<TokenRecord>>,
    started: Instant,
    /// How long the question took to come.
    upload: Duration,
}

fn ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

impl Receipt {
    /// `record` is complete but for what is not known before the end.
    /// `upload`: how long its body took to come.
    pub(super) fn new(journal: Journal, record: TokenRecord, started: Instant, upload: Duration) -> Self {
        Self {
            journal,
            record: Some(Box::new(record)),
            started,
            upload,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut TokenRecord, Instant)) {
        if let Some(record) = &mut self.record {
            change(record, self.started);
        }
    }

    /// An instance could take it. That it came slowly is no wait of ours.
    pub(super) fn sent(&mut self) {
        let upload = u64::try_from(self.upload.as_millis()).unwrap_or(u64::MAX);
        self.change(|record, started| record.queue_ms = ms(started).saturating_sub(upload));
    }

    /// Nobody has answered yet, nor refused.
    pub(super) fn is_open(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.status == 0)
    }

    /// An answer began.
    pub(super) fn answered(&mut self, status: StatusCode, deployment: Option<DeploymentId>) {
        self.change(|record, _| {
            record.status = status.as_u16();
            record.deployment_id = deployment.or(record.deployment_id);
        });
    }

    /// A byte of the answer's body came; the first counts.
    pub(super) fn first_byte(&mut self) {
        self.change(|record, started| {
            record.ttft_ms.get_or_insert_with(|| ms(started));
        });
    }

    /// What it cost so far.
    pub(super) fn counted(&mut self, usage: Usage) {
        self.change(|record, _| {
            record.prompt_tokens = usage.prompt;
            record.completion_tokens = usage.completion;
            record.cached_tokens = usage.cached;
        });
    }

    /// Writes it; nothing may change any more.
    pub(super) fn write(&mut self, outcome: Outcome) {
        if let Some(mut record) = self.record.take() {
            record.outcome = outcome;
            record.duration_ms = ms(self.started);
            record.finished_at = now();
            self.journal.append(&record);
        }
    }

    /// The edge refused it with this status.
    pub(super) fn refused(&mut self, status: StatusCode) {
        self.answered(status, None);
        self.write(Outcome::Failed);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.change(|record, _| {
            if record.status == 0 {
                record.status = CLIENT_LEFT;
            }
        });
        self.write(Outcome::ClientLeft);
    }
}

/// A model's name as records have it.
pub(super) fn model_name(name: &str) -> String {
    let mut end = name.len().min(MODEL_MAX_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}
