//! What a question to a model cost, as the edge saw it and as everything that counts tokens reads it.
//!
//! The edge writes one [`TokenRecord`] for each finished question; the control plane adds them up. The choice to know:
//! the edge says only what it knows. Whose service it was, the store says when it adds the record up, so that a routing
//! table names no organization.

use serde::{Deserialize, Serialize};

use crate::{CredentialId, DeploymentId, OrganizationId, ServiceId, Timestamp};

/// By which our own front names a question to the edge, as a UUID. It becomes [`TokenRecord::question_id`], so that the
/// front knows what its question cost. Of anybody else the edge takes it off.
pub const QUESTION_HEADER: &str = "x-tram-question";
/// By which our own front says whose question it is: the id of a credential. Of anybody else the edge takes it off.
pub const TENANT_HEADER: &str = "x-tram-tenant";
/// By which our own front says how urgent a question is: a [`Priority`].
pub const PRIORITY_HEADER: &str = "x-tram-priority";
/// By which our own front says what a question called the model, where the engine has another name for it: an alias, an
/// adapter. It becomes [`TokenRecord::asked`]. Of anybody else the edge takes it off.
pub const MODEL_HEADER: &str = "x-tram-model";

/// One finished question to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names this question and no other. The front's where it asked, else made by the edge; never the client's
    /// `X-Request-Id`, which may come twice.
    pub question_id: uuid::Uuid,
    /// Of the request, as in the access log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Which service answered.
    pub service_id: ServiceId,
    /// Which of its deployments; none when nothing answered, or the edge does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<DeploymentId>,
    /// Whose service it is, where the edge knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<OrganizationId>,
    /// Who asked, where our own front vouches for it. None: somebody who reached the service's own URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<CredentialId>,
    /// What was asked for.
    pub endpoint: Endpoint,
    /// The model, as the service calls it. At most [`MODEL_MAX_BYTES`], longer ones cut.
    pub model: String,
    /// What the question called it, where our own front says that it is another name: an alias, an adapter. As long as
    /// `model` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// Tokens of the prompt, those of [`TokenRecord::cached_tokens`] among them.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Tokens of the prompt that had not to be computed.
    pub cached_tokens: u64,
    /// From the arrival until an instance could take it, in milliseconds: the wait for a wake.
    pub queue_ms: u64,
    /// From the arrival to the first byte of the answer's body, in milliseconds; none when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// From the arrival to the last byte, in milliseconds.
    pub duration_ms: u64,
    /// HTTP's status of the answer.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Longest name of a model in a record: those of services are shorter, and what is kept for each hour must be bounded.
pub const MODEL_MAX_BYTES: usize = 128;

impl TokenRecord {
    /// Prompt and answer.
    #[must_use]
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// How far the journal of an edge was read: what is before it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalPosition {
    /// Which journal.
    pub journal: uuid::Uuid,
    /// The number of its segment.
    pub segment: u64,
    /// Bytes of it.
    pub offset: u64,
}

impl JournalPosition {
    /// Before everything in a journal.
    #[must_use]
    pub const fn start(journal: uuid::Uuid) -> Self {
        Self {
            journal,
            segment: 0,
            offset: 0,
        }
    }
}

/// What a question asks for. One that this version does not know reads as [`Endpoint::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/messages`, Anthropic's.
    Messages,
    /// `/v1/responses`, OpenAI's.
    Responses,
    /// `/v1/fim/completions`, Mistral's.
    FimCompletions,
    /// Something else that says what it cost.
    #[serde(other)]
    Other,
}

/// How a question ended. One that this version does not know reads as [`Outcome::Failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The answer went through whole.
    Complete,
    /// The client left before its end. The tokens are those that were written until then, as far as they are known.
    ClientLeft,
    /// The engine refused it: nothing was computed.
    Refused,
    /// The answer broke off, or never began.
    #[serde(other)]
    Failed,
}

/// How urgent a question is: those of a higher one go before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// As usual.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// As the engine reads it in [`PRIORITY_HEADER`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl std::fmt::Display for Priority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A word that is no [`Priority`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no priority: give low, normal or high")]
pub struct NoPriority(pub String);

impl std::str::FromStr for Priority {
    type Err = NoPriority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Low, Self::Normal, Self::High]
            .into_iter()
            .find(|priority| priority.as_str() == text)
            .ok_or_else(|| NoPriority(text.chars().take(SHOWN_CHARACTERS).collect()))
    }
}

/// Longest part of a wrong word that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_one_of_a_later_version_does_too() {
        let record = TokenRecord {
            question_id: uuid::Uuid::new_v4(),
            request_id: "r-1".to_owned(),
            service_id: ServiceId::random(),
            deployment_id: None,
            organization_id: None,
            tenant: Some(CredentialId::random()),
            endpoint: Endpoint::ChatCompletions,
            model: "chat".to_owned(),
            asked: None,
            prompt_tokens: 7,
            completion_tokens: 5,
            cached_tokens: 0,
            queue_ms: 0,
            ttft_ms: Some(12),
            duration_ms: 40,
            status: 200,
            outcome: Outcome::Complete,
            finished_at: Timestamp::from_micros(1_795_000_000_000_000),
        };
        let mut json = serde_json::to_value(&record).unwrap();
        assert_eq!(
            serde_json::from_value::<TokenRecord>(json.clone()).unwrap(),
            record
        );
        json["endpoint"] = "dreams".into();
        json["outcome"] = "forgotten".into();
        json["colour"] = "blue".into();
        let read: TokenRecord = serde_json::from_value(json).unwrap();
        assert_eq!((read.endpoint, read.outcome), (Endpoint::Other, Outcome::Failed));
    }
}
