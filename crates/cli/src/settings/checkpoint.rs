//! When instances in light sleep go to disk.

use std::time::Duration;

use super::value::{Setting, quoted};
use crate::age::{parse_span, span};

/// What makes an instance in light sleep give up its memory for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointAfter {
    /// So much time in light sleep, or memory that is short.
    Span(Duration),
    /// Memory that is short, and nothing else.
    Memory,
    /// Nothing.
    Never,
}

impl Setting for CheckpointAfter {
    const KIND: &'static str = "SPAN|memory|never";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "memory" => Ok(Self::Memory),
            "never" => Ok(Self::Never),
            text => parse_span(text).map(Self::Span).map_err(|_| {
                format!("`{text}` is neither a span of time such as 30s or 5m, nor `memory`, nor `never`")
            }),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Span(after) => quoted(&span(*after)),
            Self::Memory => quoted("memory"),
            Self::Never => quoted("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_or_a_word() {
        let minutes = CheckpointAfter::Span(Duration::from_secs(300));
        assert_eq!(CheckpointAfter::parse("5m"), Ok(minutes));
        assert_eq!(minutes.show(), "\"5m\"");
        assert_eq!(CheckpointAfter::parse("memory"), Ok(CheckpointAfter::Memory));
        assert_eq!(CheckpointAfter::parse("never"), Ok(CheckpointAfter::Never));
        let refused = CheckpointAfter::parse("soon").unwrap_err();
        assert!(
            refused.contains("`memory`") && refused.contains("`soon`"),
            "{refused}"
        );
    }
}
