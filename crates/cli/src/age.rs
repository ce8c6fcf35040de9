//! Times for people: relative ages in tables, and spans such as `5m` in arguments.

use std::time::Duration;

use tram_types::Timestamp;

const MINUTE_SECONDS: u64 = 60;
const HOUR_SECONDS: u64 = 60 * MINUTE_SECONDS;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;

/// How long ago an RFC 3339 time was, such as `3m`; `-` when there is none.
pub(crate) fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => span(now.since(time)),
        Err(_) => "-".to_owned(),
    }
}

/// A span in its largest unit, such as `3m`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    if seconds < MINUTE_SECONDS {
        format!("{seconds}s")
    } else if seconds < HOUR_SECONDS {
        format!("{}m", seconds / MINUTE_SECONDS)
    } else if seconds < 2 * DAY_SECONDS {
        format!("{}h", seconds / HOUR_SECONDS)
    } else {
        format!("{}d", seconds / DAY_SECONDS)
    }
}

/// Reads a span such as `90s`, `5m`, `2h`, `1d` or `1h30m`; a bare number is seconds.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let refusal = || format!("`{text}` is not a span of time such as 30s, 5m, 2h or 1d");
    let mut total: u64 = 0;
    let mut number = String::new();
    for character in text.chars() {
        if character.is_ascii_digit() {
            number.push(character);
            continue;
        }
        let unit = match character {
            's' => 1,
            'm' => MINUTE_SECONDS,
            'h' => HOUR_SECONDS,
            'd' => DAY_SECONDS,
            _ => return Err(refusal()),
        };
        let count: u64 = number.parse().map_err(|_| refusal())?;
        number.clear();
        total = count
            .checked_mul(unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(refusal)?;
    }
    if !number.is_empty() {
        if total > 0 {
            return Err(refusal());
        }
        return number.parse().map(Duration::from_secs).map_err(|_| refusal());
    }
    if text.is_empty() {
        return Err(refusal());
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spans() {
        for (text, seconds) in [
            ("0", 0),
            ("45", 45),
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("1d", 86_400),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "5x", "-5m", "5m3", "1.5h", "99999999999999999999d"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_short() {
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        for (time, expected) in [
            ("2026-01-02T11:59:57Z", "3s"),
            ("2026-01-02T11:30:00Z", "30m"),
            ("2026-01-01T12:00:00Z", "24h"),
            ("2025-12-30T12:00:00Z", "3d"),
            ("2026-01-02T13:00:00Z", "0s"),
            ("", "-"),
        ] {
            assert_eq!(age(time, now), expected, "{time}");
        }
    }
}
