//! The contract of a site: a place that runs instances and says what it sees.
//!
//! A site carries out orders and reports; it decides nothing. The controller gives orders guarded by a generation,
//! a site refuses one older than the newest it has seen for the instance. What a site reports is observed, never
//! assumed: an instance it cannot see is absent from the report, and a site that cannot be reached is an error of
//! [`Site::observe`], which is not the same as an empty report.
//!
//! Implementations: `site-local` (this machine), later `site-kubernetes`; `testkit` has a fake one that the tests
//! and the simulator drive. An instance is one run of a program: a replacement after a crash is a new instance, so
//! that the logs and the cause of the failed one are kept under an id of their own.

pub mod observed;
pub mod secrets;
pub mod sessions;
pub mod sites;
pub mod spec;
pub mod streams;
pub mod volumes;

use std::collections::HashMap;

use async_trait::async_trait;
use tram_types::{DeploymentId, Generation, InstanceId, InstanceSnapshotId, status::InstanceSnapshotType};

pub use observed::{EndCause, InstancePhase, Observation, ObservedImage, ObservedInstance, Usage};
pub use sessions::{Session, Sessions};
pub use sites::Sites;
pub use spec::{
    AdapterSpec, Continuation, DeviceShare, DeviceSpec, ImageSpec, InstanceSpec, RegistryCredentials,
};
pub use streams::{ExecRequest, ExecSession, LogCursor, LogEntry, LogPage, LogQuery, LogStream};
pub use volumes::{MountSpec, ObservedVolume, VolumeSpec, Volumes};

/// Why a site did not carry out an order.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The order is older than one seen before; the caller acts on old knowledge and must read again.
    #[error("the order for instance {instance} has generation {given}, the site has seen {seen}")]
    OldGeneration {
        /// Which instance.
        instance: InstanceId,
        /// The order's generation.
        given: u64,
        /// The newest seen.
        seen: u64,
    },
    /// There is no such instance here (any more).
    #[error("this site has no instance {0}")]
    NoSuchInstance(InstanceId),
    /// The order can never be carried out as it is: the user must change something. The text is for the user.
    #[error("{message}")]
    Refused {
        /// What is wrong and what to do.
        message: String,
    },
    /// The site could not do it now; the same order may succeed later.
    #[error("{message}")]
    Unavailable {
        /// What this layer was doing.
        message: String,
        /// Why it failed.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Whether the same order may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// A passing failure with its cause.
    pub fn unavailable(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

/// What a site can and cannot do, so that the planner knows which rung of sleep to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Instances can be frozen and thawed.
    pub freeze: bool,
    /// Instances can be checkpointed to disk and restored.
    pub checkpoint: bool,
    /// Memory is short: what sleeps should give up what it holds.
    pub memory_wanted: bool,
}

/// A place that runs instances.
///
/// Every method is idempotent: repeating an order that was carried out succeeds and changes nothing. None blocks
/// for the length of the work it starts: `ensure_image` and `start` begin, [`Site::observe`] tells how it went, and
/// [`Site::changed`] wakes whoever waits for news.
#[async_trait]
pub trait Site: Send + Sync + std::fmt::Debug {
    /// What this site can do.
    fn capabilities(&self) -> Capabilities;

    /// Where the site keeps volumes; `None`: it keeps none.
    fn volumes(&self) -> Option<&dyn Volumes> {
        None
    }

    /// The memory in bytes that an instance of this image takes to serve its model, the adapters and the draft of it with so
    /// many tokens of context (0: the engine's default), as far as the site knows the model; `None`: it does not.
    fn model_memory_bytes(&self, image: &ImageSpec, context_length: u64) -> Option<u64> {
        let _ = (image, context_length);
        None
    }

    /// Begins to make an image ready, or does nothing when it is. Progress and failure are in the observation.
    ///
    /// # Errors
    /// [`Error::Refused`] when the reference is none; [`Error::Unavailable`] when the site cannot work now.
    async fn ensure_image(&self, image: &ImageSpec) -> Result<ObservedImage, Error>;

    /// Lets go of what is kept for a deployment that is over: its image may be collected then, and a later
    /// [`Site::ensure_image`] for it looks its name up anew. Releasing one unknown succeeds.
    ///
    /// # Errors
    /// [`Error::Refused`] while an instance of it runs, [`Error::Unavailable`].
    async fn release_image(&self, deployment: DeploymentId) -> Result<(), Error>;

    /// Begins to run an instance. The image must be ready.
    ///
    /// # Errors
    /// [`Error::OldGeneration`], [`Error::Refused`], [`Error::Unavailable`].
    async fn start(&self, instance: &InstanceSpec, generation: Generation) -> Result<(), Error>;

    /// Begins to stop an instance: the stop signal, then the end by force after `grace`. Its logs stay.
    /// Stopping an instance that ended or never was succeeds.
    ///
    /// # Errors
    /// [`Error::OldGeneration`], [`Error::Unavailable`].
    async fn stop(
        &self,
        instance: InstanceId,
        grace: std::time::Duration,
        generation: Generation,
    ) -> Result<(), Error>;

    /// Forgets an instance that has ended: everything but its logs is removed. Forgetting one unknown succeeds.
    ///
    /// # Errors
    /// [`Error::Refused`] when it still runs, [`Error::Unavailable`].
    async fn forget(&self, instance: InstanceId, generation: Generation) -> Result<(), Error>;

    /// Stops using an instance's processor time: light sleep. The memory stays.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Refused`] when the site cannot freeze, [`Error::Unavailable`].
    async fn freeze(&self, instance: InstanceId, generation: Generation) -> Result<(), Error>;

    /// Begins to move a frozen instance's processes and memory to disk. How it went is in the observation: the phase,
    /// or [`ObservedInstance::uncheckpointable`]. A thaw that comes meanwhile wins. For an instance that is not frozen
    /// it does nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Refused`] when the site cannot checkpoint, [`Error::Unavailable`].
    async fn checkpoint(&self, instance: InstanceId, generation: Generation) -> Result<(), Error>;

    /// Ends light sleep, however deep: the instance runs when this returns.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Unavailable`].
    async fn thaw(&self, instance: InstanceId, generation: Generation) -> Result<(), Error>;

    /// Has an instance that runs or sleeps go on as one of another deployment, without interrupting it: from then on, and
    /// through every restart, it may reach what that one may. Connections that it may not have any more are cut. Its image
    /// is the new deployment's, too: nothing is looked up for it. [`ObservedInstance::deployment`] tells when it holds.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::OldGeneration`], [`Error::Refused`] when it can never be,
    /// [`Error::Unavailable`]; then what held before may hold still.
    async fn continue_as(
        &self,
        instance: InstanceId,
        continuation: &Continuation,
        generation: Generation,
    ) -> Result<(), Error> {
        let _ = (instance, continuation, generation);
        Err(Error::Refused {
            message: "this region cannot change the network policy of what runs".to_owned(),
        })
    }

    /// Keeps a running instance as it is now, durably, for instances to start from: its disk, and for a `Full` snapshot
    /// its processes and their memory too. Returns when that is done, with the bytes that it takes; the instance may
    /// stand still meanwhile. A snapshot that is there already is left as it is.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Refused`] when it can never be, such as for want of room or for what the
    /// program does, [`Error::Unavailable`]. Whoever does not ask again has what may be left of it removed
    /// ([`Site::remove_snapshot`]).
    async fn take_snapshot(
        &self,
        instance: InstanceId,
        snapshot: InstanceSnapshotId,
        kind: InstanceSnapshotType,
    ) -> Result<u64, Error> {
        let _ = (instance, snapshot, kind);
        Err(no_snapshots())
    }

    /// Reads a snapshot from end to end and compares it with the checksums of when it was taken. Takes as long as the
    /// disk needs to read it.
    ///
    /// # Errors
    /// [`Error::Refused`] when the site does not have it, [`Error::Unavailable`].
    async fn verify_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<Verdict, Error> {
        let _ = snapshot;
        Err(no_snapshots())
    }

    /// Removes a snapshot, or what there is of one that failed. Removing one unknown succeeds.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also while it is still being written.
    async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        let _ = snapshot;
        // A region that keeps none has none.
        Ok(())
    }

    /// Everything the site sees, all of one moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot look; nothing may be concluded about instances then.
    async fn observe(&self) -> Result<Observation, Error>;

    /// What the site sees of one instance, if it has it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot look.
    async fn observe_instance(&self, instance: InstanceId) -> Result<Option<ObservedInstance>, Error>;

    /// News: ids of instances whose observation may have changed. A receiver that lags must observe everything.
    fn changed(&self) -> tokio::sync::broadcast::Receiver<Changed>;

    /// What an instance uses now.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Unavailable`].
    async fn usage(&self, instance: InstanceId) -> Result<Usage, Error>;

    /// What the checkpoint of each instance on disk takes there, in bytes.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn checkpoint_bytes(&self) -> Result<HashMap<InstanceId, u64>, Error> {
        Ok(HashMap::new())
    }

    /// Reads the kept logs of an instance.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; an instance without logs gives an empty page.
    async fn logs(&self, instance: InstanceId, query: &LogQuery) -> Result<LogPage, Error>;

    /// Adds a line to an instance's logs on the platform's own stream.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn log_platform(&self, instance: InstanceId, message: &str) -> Result<(), Error>;

    /// Removes the kept logs of an instance.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn remove_logs(&self, instance: InstanceId) -> Result<(), Error>;

    /// Runs a command in a running instance.
    ///
    /// # Errors
    /// [`Error::NoSuchInstance`], [`Error::Refused`] when the command cannot be run, [`Error::Unavailable`].
    async fn exec(&self, instance: InstanceId, request: &ExecRequest) -> Result<ExecSession, Error>;
}

/// What reading a snapshot gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte is as it was when it was taken.
    Whole,
    /// It is not, and must not be used; the words are for its owner.
    Damaged(String),
    /// It has no checksums: a version of the platform without them took it.
    Unknown,
}

fn no_snapshots() -> Error {
    Error::Refused {
        message: "this region keeps no snapshots of instances".to_owned(),
    }
}

/// What may have changed at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// One instance.
    Instance(InstanceId),
    /// An image, by its reference.
    Image(String),
}
