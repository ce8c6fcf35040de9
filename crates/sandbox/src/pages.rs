//! The server of pages: what hands a restored instance its memory as it touches it, and then all of the rest.
//!
//! CRIU restores everything but the contents of private memory, registers that with a userfaultfd, and sends the
//! descriptor here (its own server of pages is `criu lazy-pages`; the exchange is the same: over a stream socket the
//! number of each process and its descriptor, then a word that all are restored). From then on a thread that touches
//! what is not there stops until it is handed over.
//!
//! ```text
//! faults ──────────────> 64 KiB around each, at once
//! touched last time ───> as soon as the instance runs: the next wake touches much the same
//! quiet for a while ───> all of the rest, one piece at a time, faults first; then the end
//! ```
//!
//! Why not CRIU's: it drops a fault that meets a change of the address space, so that the thread waits until everything
//! else was copied (seen with 4.2: a third of a second for 1 GiB); with several processes it touched what they had freed
//! already; and it takes another exec. Handing over first what was touched after an earlier wake is the idea of REAP
//! (Ustiugov and others, "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots", ASPLOS 2021).
//!
//! The one design choice to know: what is handed over is decided by plain values (`missing`), and everything that
//! goes wrong with a page is told by the kernel at the moment of handing it over: an address that is not mapped any more,
//! a page that is there already, an address space that is changing just now.

mod fault;
mod image;
mod missing;
mod process;
mod server;
mod touched;

pub(crate) use server::{SOCKET, serve};

/// The kernel's unit, on every machine this runs on.
const PAGE_BYTES: u64 = 4096;
