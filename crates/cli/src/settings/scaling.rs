//! How quickly services follow their load: the figures that an operator may choose, with their ranges.
//!
//! What is left out is as the planner has it built in; docs/concepts/autoscaling.md says what that is and why.

use super::value::{Setting, parts};

/// The longest window: what happened an hour ago says nothing of the load now.
const WINDOW_MAX: u32 = 3600;
/// The longest burst window: a burst that is told from more than a minute is none.
const BURST_MAX: u32 = 60;
/// The largest tolerance, in percent: with more a service that should have two instances stays at one.
const TOLERANCE_MAX: u32 = 50;
/// The largest step up, as a factor and as a number: more than a service may ever have.
const STEP_MAX: u32 = 20;

/// How quickly services follow their load. `None` is the built-in figure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scaling {
    /// Seconds over which requests in flight are averaged.
    pub concurrency_window: Option<u32>,
    /// Seconds over which requests in flight and arrivals tell a burst.
    pub burst_window: Option<u32>,
    /// Seconds over which arrivals are averaged.
    pub rate_window: Option<u32>,
    /// Seconds over which processor and memory are averaged.
    pub usage_window: Option<u32>,
    /// Seconds over which response times are looked at.
    pub latency_window: Option<u32>,
    /// Seconds for which the largest recommendation is kept.
    pub down_window: Option<u32>,
    /// Seconds between two steps down.
    pub down_period: Option<u32>,
    /// Percent of the target within which nothing changes.
    pub tolerance: Option<u32>,
    /// What one step up at most multiplies by.
    pub up_factor: Option<u32>,
    /// What one step up may always add.
    pub up_step: Option<u32>,
}

type Place = fn(&mut Scaling) -> &mut Option<u32>;

/// Each figure with its range.
const FIGURES: [(&str, Place, u32, u32); 10] = [
    (
        "concurrency_window",
        |it| &mut it.concurrency_window,
        1,
        WINDOW_MAX,
    ),
    ("burst_window", |it| &mut it.burst_window, 1, BURST_MAX),
    ("rate_window", |it| &mut it.rate_window, 1, WINDOW_MAX),
    ("usage_window", |it| &mut it.usage_window, 1, WINDOW_MAX),
    ("latency_window", |it| &mut it.latency_window, 1, WINDOW_MAX),
    ("down_window", |it| &mut it.down_window, 1, WINDOW_MAX),
    ("down_period", |it| &mut it.down_period, 1, WINDOW_MAX),
    ("tolerance", |it| &mut it.tolerance, 0, TOLERANCE_MAX),
    ("up_factor", |it| &mut it.up_factor, 1, STEP_MAX),
    ("up_step", |it| &mut it.up_step, 1, STEP_MAX),
];

impl Scaling {
    fn set(&mut self, name: &str, value: i64) -> Result<(), String> {
        let Some((_, place, least, most)) = FIGURES.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<&str> = FIGURES.iter().map(|(known, ..)| *known).collect();
            return Err(format!("there is no `{name}`: use one of {}", known.join(", ")));
        };
        let place = place(self);
        if place.is_some() {
            return Err(format!("`{name}` is there twice"));
        }
        let fits = u32::try_from(value)
            .ok()
            .filter(|it| (*least..=*most).contains(it));
        *place =
            Some(fits.ok_or_else(|| format!("`{name}` must be between {least} and {most}, is {value}"))?);
        Ok(())
    }

    fn checked(self) -> Result<Self, String> {
        for (name, window) in [
            ("concurrency_window", self.concurrency_window),
            ("rate_window", self.rate_window),
        ] {
            if let Some((burst, window)) = self.burst_window.zip(window).filter(|(burst, it)| burst > it) {
                return Err(format!(
                    "`burst_window` ({burst}) must not be longer than `{name}` ({window})"
                ));
            }
        }
        Ok(self)
    }
}

impl Setting for Scaling {
    const KIND: &'static str = "NAME=NUMBER,…";

    fn parse(text: &str) -> Result<Self, String> {
        let mut scaling = Self::default();
        for part in parts(text) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number = value
                .trim()
                .parse()
                .map_err(|_| format!("`{part}` is not a name and a whole number, such as down_window=60"))?;
            scaling.set(name.trim(), number)?;
        }
        scaling.checked()
    }

    fn of_toml(value: &toml::Value) -> Result<Self, String> {
        let table = match value {
            toml::Value::Table(table) => table,
            toml::Value::String(text) => return Self::parse(text),
            other => {
                return Err(format!(
                    "must be a table of names and numbers, is a {}",
                    other.type_str()
                ));
            }
        };
        let mut scaling = Self::default();
        for (name, value) in table {
            let number = value
                .as_integer()
                .ok_or_else(|| format!("`{name}` must be a whole number"))?;
            scaling.set(name, number)?;
        }
        scaling.checked()
    }

    fn show(&self) -> String {
        let mut shown = *self;
        let figures = FIGURES.iter().filter_map(|(name, place, ..)| {
            let value = (*place(&mut shown))?;
            Some(format!("{name} = {value}"))
        });
        let figures: Vec<String> = figures.collect();
        if figures.is_empty() {
            "{}".to_owned()
        } else {
            format!("{{ {} }}", figures.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_text_and_from_a_table() {
        let from_text = Scaling::parse("down_window=60, tolerance=0").unwrap();
        let table: toml::Value = toml::from_str("scaling = { down_window = 60, tolerance = 0 }").unwrap();
        assert_eq!(Scaling::of_toml(&table["scaling"]).unwrap(), from_text);
        assert_eq!((from_text.down_window, from_text.tolerance), (Some(60), Some(0)));
        assert_eq!(from_text.show(), "{ down_window = 60, tolerance = 0 }");
        assert_eq!(Scaling::default().show(), "{}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, words) in [
            ("burst_window=0", "`burst_window` must be between 1 and 60, is 0"),
            (
                "down_window=-5",
                "`down_window` must be between 1 and 3600, is -5",
            ),
            (
                "down_window=soon",
                "`down_window=soon` is not a name and a whole number",
            ),
            ("up=3", "there is no `up`: use one of"),
            ("up_step=3,up_step=4", "`up_step` is there twice"),
            (
                "burst_window=30,concurrency_window=10",
                "`burst_window` (30) must not be longer than `concurrency_window` (10)",
            ),
        ] {
            let refused = Scaling::parse(text).unwrap_err();
            assert!(refused.starts_with(words), "{text}: {refused}");
        }
    }
}
