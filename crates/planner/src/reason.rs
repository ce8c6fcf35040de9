//! Why something is done, or not: an enum with its words.
//!
//! The words go into events and logs as they are, so they are written for the owner of the service.

use std::{fmt, time::Duration};

use tram_site::EndCause;

/// Why.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// A deployment was accepted.
    Accepted,
    /// Its image is on its way.
    Fetching {
        /// What the site says of it.
        step: String,
    },
    /// The image is there.
    ImageReady,
    /// Another image stands in for it, in the site's words.
    ImageStandsIn(String),
    /// The network policy is being changed in the instances that run.
    PolicyOnItsWay,
    /// The network policy holds in the instances that run.
    PolicyApplied,
    /// The replica has no instance yet.
    ReplicaWanted {
        /// Which replica.
        replica: u32,
        /// How many there should be.
        wanted: u32,
    },
    /// A replica that failed is tried again.
    TryAgain {
        /// Which replica.
        replica: u32,
        /// Which try this is.
        attempt: u32,
        /// Why the last one failed.
        cause: String,
    },
    /// A replica that failed waits for its next try.
    BackingOff {
        /// Which replica.
        replica: u32,
        /// Which try will be next.
        attempt: u32,
        /// How long it waits in all.
        delay: Duration,
        /// Why the last one failed.
        cause: String,
    },
    /// The site reports this.
    Seen(&'static str),
    /// An instance ended by itself.
    Ended(EndCause),
    /// The site answers and does not have the instance.
    Lost,
    /// The instance's checks fail.
    Failing {
        /// Probes that failed in a row.
        failures: u32,
        /// Why the last one failed.
        last: Option<String>,
    },
    /// The instance did not become healthy in time.
    NeverHealthy {
        /// How long it had.
        within: Duration,
        /// What the last probe said.
        last: Option<String>,
    },
    /// The instance could not even be started in time.
    NeverStarted {
        /// How long there was for it.
        within: Duration,
        /// What its site says is in the way.
        cause: Option<String>,
    },
    /// Every required instance is healthy.
    AllHealthy,
    /// Some replicas are in trouble.
    SomeInTrouble(String),
    /// No replica is healthy.
    NoneHealthy(String),
    /// The deployment could not be brought up.
    Failed(String),
    /// A newer deployment took its place.
    Replaced {
        /// The newer one's version.
        by_version: i64,
    },
    /// A newer deployment was made before this one served.
    Superseded {
        /// The newer one's version.
        by_version: i64,
    },
    /// The strategy stops the old deployment before the new one is healthy.
    StoppedForStrategy {
        /// The newer one's version.
        by_version: i64,
    },
    /// Its owner cancelled it.
    CancelRequested,
    /// Its owner paused the service.
    PauseRequested,
    /// Its owner deleted the service.
    DeleteRequested,
    /// `delete_after_create` has passed.
    LivedLongEnough(Duration),
    /// `delete_after_sleep` has passed.
    SleptLongEnough(Duration),
    /// No traffic for long enough.
    Idle(Duration),
    /// Somebody waits for the service.
    WakeRequested,
    /// Nobody called, and somebody probably will soon.
    WakeExpected,
    /// Fewer replicas are wanted.
    ScaledDown {
        /// How many there should be.
        wanted: u32,
    },
    /// Two instances of one replica.
    Duplicate,
    /// Nothing of it is left.
    Gone,
    /// The site does not answer.
    SiteUnreachable {
        /// Which region's.
        region: String,
    },
    /// No site serves the region any more.
    NotServed {
        /// Which region.
        region: String,
    },
    /// The data plane still sends requests there.
    EdgeStillRoutes,
    /// The data plane has not confirmed what it serves.
    EdgeUnknown,
    /// Requests are given time to finish.
    Draining,
    /// An instance that is one too many ends with the last request on it.
    DrainingForLoad,
    /// Instances are on their way out.
    Stopping,
    /// The old deployment has to be gone first.
    WaitsForOld,
    /// Its instances are healthy, and the data plane has not confirmed to send requests to them.
    WaitsForEdge,
    /// That took too long.
    NeverRouted {
        /// How long it had.
        within: Duration,
    },
    /// A canary takes its share of the requests and is watched.
    CanaryBaking {
        /// How long in all.
        over: Duration,
    },
    /// It goes down half way, and what it took over is not back yet.
    StandsIn,
    /// A canary was healthy, and may not go on.
    CanaryFailed {
        /// What is wrong with it.
        cause: String,
    },
    /// Light sleep was asked for, and the machines cannot freeze anything.
    LightSleepAsDeep,
    /// No traffic for long enough to freeze it.
    IdleLight(Duration),
    /// An instance could not be frozen, in its site's words.
    CannotFreeze(String),
    /// An instance cannot be moved to disk.
    CannotCheckpoint(String),
    /// Another model has more use for the memory; which, in words.
    MadeRoom(String),
    /// Models hold all the memory that there is for them; how, in words.
    NoRoom(String),
    /// It does not fit into the memory that there is for models.
    NeverRoom(String),
}

/// How every [`Reason::NoRoom`] begins, by which the message of one that is over is known.
const NO_ROOM: &str = "waiting for memory";

/// Whether a message says that there was no room.
pub(crate) fn is_no_room(message: &str) -> bool {
    message.starts_with(NO_ROOM)
}

/// `first`, `second`, `third`, then `4th`.
fn ordinal(number: u32) -> String {
    match number {
        1 => "first".to_owned(),
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        4 => "fourth".to_owned(),
        5 => "fifth".to_owned(),
        other => match (other % 10, other % 100) {
            (1, hundred) if hundred != 11 => format!("{other}st"),
            (2, hundred) if hundred != 12 => format!("{other}nd"),
            (3, hundred) if hundred != 13 => format!("{other}rd"),
            _ => format!("{other}th"),
        },
    }
}

/// `45 s`, `5 min`, `2 h`.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if !duration.is_zero() => format!("{} ms", duration.as_millis()),
        _ if seconds >= 7200 && seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ if seconds >= 120 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

fn last_probe(last: Option<&String>) -> String {
    last.map_or_else(String::new, |last| format!("; the last probe said: {last}"))
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => write!(f, "the deployment was accepted"),
            Self::Fetching { step } if step.is_empty() => write!(f, "fetching the image"),
            Self::Fetching { step } => write!(f, "fetching the image: {step}"),
            Self::ImageReady => write!(f, "the image is ready"),
            Self::ImageStandsIn(notice) => write!(f, "{notice}"),
            Self::ReplicaWanted { replica, wanted } => write!(f, "starting replica {replica} of {wanted}"),
            Self::TryAgain {
                replica,
                attempt,
                cause,
            } => {
                write!(f, "replica {replica}: {cause}; {} try", ordinal(*attempt))
            }
            Self::BackingOff {
                replica,
                attempt,
                delay,
                cause,
            } => write!(
                f,
                "replica {replica}: {cause}; {} try in {}",
                ordinal(*attempt),
                span(*delay)
            ),
            Self::Seen(what) => write!(f, "{what}"),
            Self::Ended(cause) => write!(f, "{cause}"),
            Self::PolicyOnItsWay => {
                write!(f, "the network policy is being changed in the instances that run")
            }
            Self::PolicyApplied => write!(
                f,
                "only the network policy differs: it holds in the instances that run, and they go on"
            ),
            Self::Lost => write!(
                f,
                "the instance is gone from its machine; a new one takes its place"
            ),
            Self::Failing { failures, last } => {
                write!(
                    f,
                    "{failures} health checks failed in a row{}",
                    last_probe(last.as_ref())
                )
            }
            Self::NeverHealthy { within, last } => write!(
                f,
                "did not become healthy within {}{}",
                span(*within),
                last_probe(last.as_ref())
            ),
            Self::NeverStarted { within, cause } => write!(
                f,
                "could not be started within {}{}",
                span(*within),
                cause
                    .as_ref()
                    .map_or_else(String::new, |cause| format!(": {cause}"))
            ),
            Self::AllHealthy => write!(f, "all required instances are healthy"),
            Self::SomeInTrouble(what) => write!(f, "some instances are in trouble: {what}"),
            Self::NoneHealthy(what) => write!(f, "no instance is healthy: {what}"),
            Self::Failed(what) => write!(f, "{what}"),
            Self::Replaced { by_version } => write!(f, "replaced by version {by_version}"),
            Self::Superseded { by_version } => {
                write!(f, "version {by_version} was deployed before this one was healthy")
            }
            Self::StoppedForStrategy { by_version } => {
                write!(f, "stopped to make room for version {by_version}")
            }
            Self::CancelRequested => write!(f, "cancelled by its owner"),
            Self::PauseRequested => write!(f, "the service was paused"),
            Self::DeleteRequested => write!(f, "the service was deleted"),
            Self::LivedLongEnough(after) => {
                write!(f, "deleted {} after its creation, as it asks for", span(*after))
            }
            Self::SleptLongEnough(after) => {
                write!(f, "deleted after {} of sleep, as it asks for", span(*after))
            }
            Self::Idle(after) => write!(f, "no traffic for {}: going to sleep", span(*after)),
            Self::WakeRequested => write!(f, "a request came in: waking up"),
            Self::WakeExpected => write!(f, "a call is expected soon: waking up before it"),
            Self::ScaledDown { wanted } => write!(f, "scaled down to {wanted}"),
            Self::Duplicate => write!(f, "another instance of the same replica runs"),
            Self::Gone => write!(f, "all its instances have ended"),
            Self::SiteUnreachable { region } => write!(
                f,
                "the machines of region {region} do not answer; what runs there is left as it is"
            ),
            Self::NotServed { region } => write!(
                f,
                "no machines serve region {region} any more; what may still run there is stopped when they are back"
            ),
            Self::EdgeStillRoutes => write!(f, "waiting until no new requests are sent there"),
            Self::EdgeUnknown => write!(f, "waiting for the data plane"),
            Self::Draining => write!(f, "requests under way get time to finish"),
            Self::DrainingForLoad => write!(f, "an instance that is one too many ends with its last request"),
            Self::Stopping => write!(f, "waiting for instances to stop"),
            Self::WaitsForOld => write!(f, "waiting until nothing of the old deployment is left"),
            Self::WaitsForEdge => write!(
                f,
                "all required instances are healthy; waiting until the data plane sends requests to them"
            ),
            Self::NeverRouted { within } => write!(
                f,
                "its instances are healthy, but the data plane was not given a way to them within {}: its routes or one \
                 of its secrets cannot be read; the log of the control plane tells which",
                span(*within)
            ),
            Self::CanaryBaking { over } => write!(
                f,
                "the canary takes its share of the requests; the rest follows once it has been healthy for {}",
                span(*over)
            ),
            Self::StandsIn => write!(
                f,
                "it takes requests until the instances of the deployment before it are back"
            ),
            Self::CanaryFailed { cause } => write!(f, "the canary failed: {cause}"),
            Self::LightSleepAsDeep => {
                write!(
                    f,
                    "light sleep is not to be had on these machines: the service goes to deep sleep instead"
                )
            }
            Self::IdleLight(after) => write!(f, "no traffic for {}: going to light sleep", span(*after)),
            Self::CannotFreeze(why) => write!(
                f,
                "light sleep is not to be had, so the service stays awake until deep sleep is due: {why}"
            ),
            Self::MadeRoom(whose) => write!(f, "put to sleep to make room for {whose}"),
            Self::NoRoom(why) => write!(f, "{NO_ROOM}: {why}"),
            Self::NeverRoom(why) => write!(f, "{why}"),
            Self::CannotCheckpoint(why) => write!(
                f,
                "light sleep keeps the memory of an instance, which cannot be moved to disk: {why}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_sentences() {
        let reason = Reason::BackingOff {
            replica: 0,
            attempt: 3,
            delay: Duration::from_secs(4),
            cause: EndCause::Exited { code: 1 }.to_string(),
        };
        assert_eq!(
            reason.to_string(),
            "replica 0: the program left with exit code 1; third try in 4 s"
        );
        assert_eq!(ordinal(12), "12th");
        assert_eq!(ordinal(22), "22nd");
        assert_eq!(span(Duration::from_secs(900)), "15 min");
    }
}
