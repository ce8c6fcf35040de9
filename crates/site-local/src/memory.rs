//! Whether the machine's memory is short.
//!
//! Asked by the site every few seconds, and told to whoever plans as one of its abilities: what sleeps should then give up
//! what it holds.

use std::io;
use std::time::Duration;

/// Between two looks: memory fills up in seconds, and a look is one small read.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Short below this share of the whole, in hundredths: kernels begin to reclaim in earnest at a few, and a checkpoint takes
/// a second for each gigabyte.
const SHORT_PERCENT: u64 = 10;
/// Enough again above this: what hovers about one value must not come and go.
const ENOUGH_PERCENT: u64 = 15;

/// Reads the machine's figures. `was_short`: what was found before.
pub(crate) fn is_short(was_short: bool) -> io::Result<bool> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    judge(&text, was_short).ok_or_else(|| io::Error::other("/proc/meminfo lacks MemTotal or MemAvailable"))
}

fn judge(meminfo: &str, was_short: bool) -> Option<bool> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    let limit = if was_short { ENOUGH_PERCENT } else { SHORT_PERCENT };
    Some(available.saturating_mul(100) < total.saturating_mul(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meminfo(available: u64) -> String {
        format!("MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:   {available} kB\n")
    }

    #[test]
    fn short_begins_lower_than_it_ends() {
        assert_eq!(judge(&meminfo(99), false), Some(true));
        assert_eq!(judge(&meminfo(120), false), Some(false));
        assert_eq!(judge(&meminfo(120), true), Some(true));
        assert_eq!(judge(&meminfo(150), true), Some(false));
        assert_eq!(judge("MemTotal: 5 kB", false), None);
        is_short(false).unwrap();
    }
}
