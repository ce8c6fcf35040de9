//! What the controller needs of the data plane, in words of its own: the edge is another process, maybe another
//! program, and `server` adapts its link to this trait.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
};

use async_trait::async_trait;
use tram_planner::Tally;
use tram_types::{
    InstanceId, ServiceId, Timestamp,
    routing::{RoutingTable, TableChange},
};

/// What carries user traffic.
#[async_trait]
pub trait DataPlane: Send + Sync + Debug {
    /// Puts a table into force. When this returns, no request is routed by an older one any more.
    ///
    /// # Errors
    /// [`Error::Lost`] when the link is down (an [`Event::Connected`] follows when it is up again),
    /// [`Error::Refused`] when it holds a newer table or this one makes no sense.
    async fn push(&self, table: &RoutingTable) -> Result<(), Error>;

    /// Makes the table in force into the next version, as [`DataPlane::push`] would with that one whole. False when it
    /// takes nothing but whole tables.
    ///
    /// # Errors
    /// As [`DataPlane::push`]; [`Error::Refused`] too when another version is in force than the change begins with.
    async fn change(&self, _change: &TableChange) -> Result<bool, Error> {
        Ok(false)
    }

    /// Says that these instances of a service, which sleeps in the table of this version, answer again: requests go
    /// there from now on. Gives false when another table is in force, or when it takes nothing but tables.
    ///
    /// # Errors
    /// [`Error::Lost`]: it may have been told all the same.
    async fn thawed(
        &self,
        _service: ServiceId,
        _version: u64,
        _instances: Vec<InstanceId>,
    ) -> Result<bool, Error> {
        Ok(false)
    }

    /// Whether a service sleeps under the table in force and nothing of it is under way, so that nothing reaches its
    /// instances before [`DataPlane::thawed`] or a table that says otherwise. One that cannot tell says yes: its
    /// reports have to do.
    ///
    /// # Errors
    /// [`Error::Lost`].
    async fn is_quiet(&self, _service: ServiceId) -> Result<bool, Error> {
        Ok(true)
    }

    /// The next news; `None` when there will never be any more. One task asks.
    ///
    /// Must be cancel-safe.
    async fn next_event(&self) -> Option<Event>;
}

/// Why a table is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The link is down.
    #[error("the link to the data plane is down")]
    Lost(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// It was refused.
    #[error("the data plane holds version {held} and refused the table: {reason}")]
    Refused {
        /// The version it serves.
        held: u64,
        /// Its words.
        reason: String,
    },
}

/// News of the data plane.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The link is up. Tables must be pushed again; nothing is known of activity until a complete report.
    Connected {
        /// The version that the data plane serves; 0: none.
        held: u64,
    },
    /// The link is down. The data plane goes on serving what it has.
    Lost,
    /// Callers wait for a service that sleeps.
    Wake {
        /// Which.
        service: ServiceId,
        /// How many.
        waiting: u64,
    },
    /// What services do.
    Report {
        /// Whether every service of the table is here; one that is not then is idle.
        complete: bool,
        /// The services.
        services: Vec<ServiceActivity>,
    },
    /// How requests to the instances of a service turned out since a canary of it is tried.
    Tallies {
        /// The service.
        service: ServiceId,
        /// Its instances, canaries among them.
        instances: HashMap<InstanceId, Tally>,
    },
    /// Every instance with requests under way, whatever table sent them there. An instance that a table took out, and
    /// that is not here when that table or a newer one is in force, will not get any more.
    Busy {
        /// The version in force when this was true.
        version: u64,
        /// The instances.
        instances: HashSet<InstanceId>,
    },
}

/// What one service does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceActivity {
    /// Which.
    pub service: ServiceId,
    /// Requests, streams and connections being served.
    pub in_flight: u64,
    /// Callers that wait for an instance.
    pub queued: u64,
    /// When a request last came or ended.
    pub last_at: Option<Timestamp>,
    /// Requests that came since the data plane started; `None`: it does not count them.
    pub arrivals: Option<u64>,
    /// How soon they were answered.
    pub latency: Latency,
}

/// How soon requests were answered since the data plane started: the time to the head of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency {
    /// Upper bounds in microseconds; one bucket more than bounds.
    pub bounds_us: Vec<u64>,
    /// Answers in each bucket, not cumulative. Empty: it does not count them.
    pub counts: Vec<u64>,
}

/// No data plane at all: accepts every table and never has news. For a control plane that runs alone, in benches and
/// tests. Nothing sleeps under it, since nobody knows of any traffic.
#[derive(Debug, Clone, Copy, Default)]
pub struct Detached;

#[async_trait]
impl DataPlane for Detached {
    async fn push(&self, _table: &RoutingTable) -> Result<(), Error> {
        Ok(())
    }

    async fn change(&self, _change: &TableChange) -> Result<bool, Error> {
        Ok(true)
    }

    async fn next_event(&self) -> Option<Event> {
        None
    }
}
