//! Isolation on this machine, and the supervisor that launches with it.
//!
//! Owns: namespaces, cgroups, seccomp, the root file system, freezing, the log segments of an
//! instance, and the small process that holds it all together. Does not own: images (they arrive
//! unpacked, as overlay lower directories), networks (they arrive as a path of a network
//! namespace), or any decision about what should run.
//!
//! Called by `site-local` (through [`client::Client`]) and by `tram supervise` (through
//! [`supervisor::run`]).
//!
//! The one design choice to know: nothing an instance needs lives in the memory of a long-lived
//! process. The supervisor reads everything back from disk and from the kernel; each instance has a
//! tiny shim of its own that outlives the supervisor, keeps its logs and learns how it ended.
//!
//! Everything here is synchronous. This is the only crate of the house with `unsafe`, and most of it
//! is in `sys`.

pub mod checkpoint;
pub mod client;
pub mod gvisor;
pub mod heap;
pub mod logs;
pub mod netns;
pub mod probe;
pub mod protocol;
pub mod reclaim;
pub mod snapshot;
pub mod supervisor;
pub mod volume;

pub use sealed::ensure_sealed;

mod cgroup;
mod clone;
mod disk;
mod init;
mod installed;
mod pages;
mod patience;
mod sealed;
mod seccomp;
mod shim;
mod state;
mod still;
mod sys;
mod userns;
