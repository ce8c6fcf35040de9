//! When instances in light sleep go to disk, and how much of it they and snapshots may take.

use std::time::Duration;

use super::value::{Setting, quoted};
use crate::age::{parse_span, span};
use tram_types::units::MIB;

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

/// How much room of a disk something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSpace {
    /// What the disk has.
    Disk,
    /// So many MiB.
    MiB(u64),
}

/// Sizes as people write them, in MiB.
pub(super) mod mebibytes {
    /// MiB in a GiB.
    const PER_GIB: u64 = 1024;

    /// What `512MiB` or `20GiB` means; `None`: it is neither, or nothing.
    pub(in super::super) fn parse(text: &str) -> Option<u64> {
        let size = |suffix: &str, mib: u64| {
            let number: u64 = text.strip_suffix(suffix)?.trim_end().parse().ok()?;
            number.checked_mul(mib).filter(|whole| *whole > 0)
        };
        size("GiB", PER_GIB).or_else(|| size("MiB", 1))
    }

    /// The same the other way round.
    pub(in super::super) fn show(mib: u64) -> String {
        if mib.is_multiple_of(PER_GIB) {
            format!("{}GiB", mib / PER_GIB)
        } else {
            format!("{mib}MiB")
        }
    }
}

impl DiskSpace {
    /// The same in bytes; `None`: no limit.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::Disk => None,
            Self::MiB(mib) => Some(mib.saturating_mul(MIB)),
        }
    }
}

impl Setting for DiskSpace {
    const KIND: &'static str = "SIZE|disk";

    fn parse(text: &str) -> Result<Self, String> {
        match mebibytes::parse(text) {
            _ if text == "disk" => Ok(Self::Disk),
            Some(mib) => Ok(Self::MiB(mib)),
            None => Err(format!(
                "`{text}` is neither a size above nothing such as 512MiB or 20GiB, nor `disk`"
            )),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Disk => quoted("disk"),
            Self::MiB(mib) => quoted(&mebibytes::show(*mib)),
        }
    }
}

/// How much room something may take that need not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptSpace {
    /// It is not there.
    None,
    /// So many MiB.
    MiB(u64),
}

impl KeptSpace {
    /// The same in bytes; `None`: it is not there.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::MiB(mib) => Some(mib.saturating_mul(MIB)),
        }
    }
}

impl Setting for KeptSpace {
    const KIND: &'static str = "SIZE|none";

    fn parse(text: &str) -> Result<Self, String> {
        match mebibytes::parse(text) {
            _ if text == "none" => Ok(Self::None),
            Some(mib) => Ok(Self::MiB(mib)),
            None => Err(format!(
                "`{text}` is neither a size above nothing such as 512MiB or 20GiB, nor `none`"
            )),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::None => quoted("none"),
            Self::MiB(mib) => quoted(&mebibytes::show(*mib)),
        }
    }
}

/// How much room the snapshots of all instances may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotSpace {
    /// A size, or what the disk has.
    Size(DiskSpace),
    /// A share of the disk, in percent: from 1 to 100.
    Percent(u8),
}

impl Setting for SnapshotSpace {
    const KIND: &'static str = "SIZE|PERCENT|disk";

    fn parse(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').map(|number| {
            number
                .trim_end()
                .parse()
                .ok()
                .filter(|percent| (1..=100).contains(percent))
        });
        match percent {
            Some(percent) => percent.map(Self::Percent),
            None => DiskSpace::parse(text).ok().map(Self::Size),
        }
        .ok_or_else(|| {
            format!(
                "`{text}` is neither a size above nothing such as 512MiB or 20GiB, nor a share of the disk from 1% to \
                 100%, nor `disk`"
            )
        })
    }

    fn show(&self) -> String {
        match self {
            Self::Size(size) => size.show(),
            Self::Percent(percent) => quoted(&format!("{percent}%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_or_nothing() {
        let parse = KeptSpace::parse;
        assert_eq!(parse("2GiB").map(KeptSpace::bytes), Ok(Some(2 << 30)));
        assert_eq!(parse("none").map(KeptSpace::bytes), Ok(None));
        assert!(parse("disk").is_err() && parse("0MiB").is_err());
        assert_eq!(KeptSpace::MiB(512).show(), "\"512MiB\"");
    }

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

    #[test]
    fn a_size_or_a_share_of_the_disk() {
        let parse = SnapshotSpace::parse;
        assert_eq!(parse("20GiB"), Ok(SnapshotSpace::Size(DiskSpace::MiB(20 << 10))));
        assert_eq!(parse("disk"), Ok(SnapshotSpace::Size(DiskSpace::Disk)));
        assert_eq!(parse("50%"), Ok(SnapshotSpace::Percent(50)));
        assert_eq!(parse("7 %").map(|it| it.show()), Ok("\"7%\"".to_owned()));
        for wrong in ["0%", "101%", "half", "%", "-3%", "50"] {
            let refused = parse(wrong).unwrap_err();
            assert!(refused.contains("from 1% to 100%"), "{refused}");
        }
    }

    #[test]
    fn a_size_with_its_unit_or_the_disk() {
        let parse = DiskSpace::parse;
        assert_eq!(parse("20GiB").map(DiskSpace::bytes), Ok(Some(20 << 30)));
        assert_eq!(parse("20GiB").map(|it| it.show()), Ok("\"20GiB\"".to_owned()));
        assert_eq!(parse("512 MiB").map(|it| it.show()), Ok("\"512MiB\"".to_owned()));
        assert_eq!(parse("disk").map(DiskSpace::bytes), Ok(None));
        for wrong in ["0GiB", "20", "20GB", "-1GiB", "99999999999999999999GiB", ""] {
            let refused = parse(wrong).unwrap_err();
            assert!(refused.contains("such as 512MiB"), "{refused}");
        }
    }
}
