//! Checkpoints: an instance's processes and memory as files, and the way back.
//!
//! Called by the shim, which is the parent of the instance before and after (`shim.rs`), and by whoever asks
//! whether this machine can ([`Criu::find`]). CRIU does the work; owned here is what it is told, what must be true
//! before it is asked (`obstacles`), and when an image counts (`image`).
//!
//! The one design choice to know: only the process ids and the table of mounts are made anew by a restore. Network,
//! host name, System V and POSIX IPC, control groups, and every mounted file system live on in namespaces that the shim
//! holds open: CRIU is run inside the first ones, so that it takes them for its own, and is told that each mount is
//! something it will be given. So nothing of a file system is copied, no packet filter is touched, and what lies in
//! `/dev/shm` stays where it is.

mod criu;
mod dump;
mod ids;
mod image;
mod mounts;
mod obstacles;
mod restore;

pub use criu::{Criu, Missing, VERSION_MIN};
pub(crate) use dump::{Dump, Dumped, Purpose, dump};
pub(crate) use ids::give as give_ids;
pub(crate) use image::{Image, Kept};
pub(crate) use mounts::{Held, writing_end};
pub(crate) use restore::{Pages, Restore, Restored, restore};
