//! Time as the house knows it: instants in UTC with microseconds, and a clock that is passed in.
//!
//! Nothing reads the system's clock but [`SystemClock`]: whoever needs the time is given a [`Clock`], so that tests
//! and the simulator decide what time it is.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// An instant in UTC, to the microsecond (what both databases keep).
///
/// On the wire: RFC 3339 ending in `Z`, which one official client insists on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// The instant so many microseconds after the epoch; values outside of jiff's range (years -9999 to 9999)
    /// give the nearest end of it.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(
            jiff::Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
                jiff::Timestamp::MIN
            } else {
                jiff::Timestamp::MAX
            }),
        )
    }

    /// Microseconds since the epoch.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// This instant and a duration; the end of time when that is out of range.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.as_micros().saturating_add(micros))
    }

    /// This instant less a duration.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.as_micros().saturating_sub(micros))
    }

    /// How long after `earlier` this is; zero when it is not after it (clocks jump).
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.as_micros().saturating_sub(earlier.as_micros());
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// The same instant in jiff's type, for calendar work.
    #[must_use]
    pub const fn jiff(self) -> jiff::Timestamp {
        self.0
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(instant: jiff::Timestamp) -> Self {
        Self::from_micros(instant.as_microsecond())
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(Self::from)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
                utoipa::openapi::KnownFormat::DateTime,
            )))
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {
    fn name() -> std::borrow::Cow<'static, str> {
        std::borrow::Cow::Borrowed("date-time")
    }
}

/// Says what time it is.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from(jiff::Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_with_a_z() {
        let instant = Timestamp::from_micros(1_795_000_000_123_456);
        let text = instant.to_string();
        assert!(text.ends_with('Z'), "{text}");
        assert_eq!(text.parse::<Timestamp>().unwrap(), instant);
        assert_eq!(serde_json::to_string(&instant).unwrap(), format!("\"{text}\""));
    }

    #[test]
    fn a_clock_that_jumps_back_never_gives_a_negative_span() {
        let later = Timestamp::from_micros(10);
        assert_eq!(Timestamp::EPOCH.since(later), Duration::ZERO);
        assert_eq!(later.since(Timestamp::EPOCH), Duration::from_micros(10));
    }
}
