//! What a client is told of its limits: headers as OpenAI's clients and Mistral's read them, and refusals.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tram_store::record::LimitScope;
use tram_types::Timestamp;

use super::account::{Account, Shortage, What};
use crate::inference::error::{Limited, Refusal};

/// Longest wait that a client is asked to sit through by itself: OpenAI's clients obey up to a minute.
const RETRIED_MAX: Duration = Duration::from_secs(60);

/// The tightest of what limits a question; what is not limited is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::inference) struct Told {
    requests: Option<Level>,
    tokens: Option<Level>,
    /// Limit and what is left.
    month: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    limit: u64,
    left: u64,
    /// Until nothing is taken any more.
    reset: Duration,
}

impl Told {
    /// This account limits it too.
    pub(super) fn also(&mut self, account: &Account, now: Timestamp) {
        let tighter = |known: &mut Option<Level>, limit: u64, bucket: super::bucket::Bucket| {
            let mut bucket = bucket;
            bucket.fill(limit, now);
            let left = bucket.left();
            if limit > 0 && known.is_none_or(|known| left < known.left) {
                *known = Some(Level {
                    limit,
                    left,
                    reset: bucket.wait(limit, limit),
                });
            }
        };
        tighter(&mut self.requests, account.requests_a_minute, account.requests);
        tighter(&mut self.tokens, account.tokens_a_minute, account.tokens);
        let left = account.month_left();
        if account.tokens_a_month > 0 && self.month.is_none_or(|(_, known)| left < known) {
            self.month = Some((account.tokens_a_month, left));
        }
    }

    /// Says so in the headers of an answer.
    pub(in crate::inference) fn write(&self, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        if let Some(level) = self.requests {
            put("x-ratelimit-limit-requests", level.limit.to_string());
            put("x-ratelimit-remaining-requests", level.left.to_string());
            put("x-ratelimit-reset-requests", span(level.reset));
            put("x-ratelimit-limit-req-minute", level.limit.to_string());
            put("x-ratelimit-remaining-req-minute", level.left.to_string());
        }
        if let Some(level) = self.tokens {
            put("x-ratelimit-limit-tokens", level.limit.to_string());
            put("x-ratelimit-remaining-tokens", level.left.to_string());
            put("x-ratelimit-reset-tokens", span(level.reset));
            put("x-ratelimit-limit-tokens-minute", level.limit.to_string());
            put("x-ratelimit-remaining-tokens-minute", level.left.to_string());
        }
        if let Some((limit, left)) = self.month {
            put("x-ratelimit-limit-tokens-month", limit.to_string());
            put("x-ratelimit-remaining-tokens-month", left.to_string());
        }
    }
}

/// A span as OpenAI writes it: `20ms`, `8.64s`, `6m0s`.
fn span(span: Duration) -> String {
    const MINUTE: u64 = 60;
    // Up: who comes again then must not be early.
    let ms = span.as_micros().div_ceil(1000);
    let (seconds, rest) = (u64::try_from(ms / 1000).unwrap_or(u64::MAX), ms % 1000);
    match (seconds, rest) {
        (0, ms) => format!("{ms}ms"),
        (seconds, 0) if seconds < MINUTE => format!("{seconds}s"),
        (seconds, ms) if seconds < MINUTE => {
            let text = format!("{seconds}.{ms:03}");
            format!("{}s", text.trim_end_matches('0'))
        }
        (seconds, _) => format!("{}m{}s", seconds / MINUTE, seconds % MINUTE),
    }
}

/// The refusal of a question for which something is short.
pub(super) fn refusal(shortage: &Shortage, told: &Told) -> Refusal {
    let whose = match shortage.scope {
        LimitScope::Credential => "this API token",
        LimitScope::Project => "this project",
        LimitScope::Organization => "this organization",
    };
    let Shortage {
        limit, left, wanted, ..
    } = shortage;
    let wait = span(shortage.wait);
    let (message, kind, code) = match shortage.what {
        What::RequestsAMinute => (
            format!("{whose} may ask {limit} questions a minute: try again in {wait}"),
            "requests",
            "rate_limit_exceeded",
        ),
        What::TokensAMinute => (
            format!(
                "{whose} may use {limit} tokens a minute, {left} are left and this question may need {wanted}: try \
                 again in {wait}, or ask for less"
            ),
            "tokens",
            "rate_limit_exceeded",
        ),
        What::TokensAMonth if wanted > limit => (
            format!(
                "{whose} may use {limit} tokens a month, and this question may need {wanted}: it fits into no month; ask \
                 for less, or have the limit raised"
            ),
            "insufficient_quota",
            "insufficient_quota",
        ),
        What::TokensAMonth => (
            format!(
                "{whose} may use {limit} tokens a month, {left} are left and this question may need {wanted}: have \
                 the limit raised, ask for less, or wait for the next month"
            ),
            "insufficient_quota",
            "insufficient_quota",
        ),
    };
    let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, message).coded(code);
    let mut headers = HeaderMap::new();
    told.write(&mut headers);
    let never = matches!(shortage.what, What::TokensAMonth) && wanted > limit;
    if !never {
        let seconds = shortage.wait.as_micros().div_ceil(1_000_000).max(1);
        refusal.retry_after = HeaderValue::from_str(&seconds.to_string()).ok();
        let ms = shortage.wait.as_micros().div_ceil(1000).max(1);
        if let Ok(value) = HeaderValue::from_str(&ms.to_string()) {
            headers.insert(HeaderName::from_static("retry-after-ms"), value);
        }
    }
    if never || shortage.wait > RETRIED_MAX {
        // OpenAI's clients would try again at once, and in vain.
        headers.insert(
            HeaderName::from_static("x-should-retry"),
            HeaderValue::from_static("false"),
        );
    }
    refusal.limited = Some(Box::new(Limited { kind, headers }));
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_into_no_month_is_not_put_off() {
        let of = |wanted| {
            let shortage = Shortage {
                scope: LimitScope::Credential,
                what: What::TokensAMonth,
                limit: 100,
                left: 40,
                wanted,
                wait: Duration::from_secs(3600),
            };
            refusal(&shortage, &Told::default())
        };
        let (later, never) = (of(100), of(101));
        assert!(later.message.contains("wait for the next month") && later.retry_after.is_some());
        assert!(never.message.contains("fits into no month"), "{}", never.message);
        assert_eq!(never.retry_after, None);
        let headers = &never.limited.as_ref().expect("a limit").headers;
        assert_eq!(headers["x-should-retry"], "false");
        assert!(!headers.contains_key("retry-after-ms"));
    }

    #[test]
    fn spans_are_written_as_clients_know_them() {
        for (ms, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (3_661_500, "61m1s"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
        assert_eq!(span(Duration::from_micros(1)), "1ms");
    }
}
