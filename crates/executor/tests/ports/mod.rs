//! Ports for the executors of tests, which run side by side in processes of their own.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Ports that the kernel gives to nobody who connects: one who connects to a port of those before anybody listens there
/// may meet himself, and the port is taken then.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Ports that one process looks through first. Processes that are started one after the other have numbers one after the
/// other, and between the look and the executor's own the port is nobody's.
const OF_A_PROCESS: u32 = 16;

/// A port that nobody listens on, and that no other test takes.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let all = PORTS.end - PORTS.start;
    let begin = u16::try_from(std::process::id().wrapping_mul(OF_A_PROCESS) % u32::from(all)).unwrap();
    loop {
        let port = PORTS.start + (begin + NEXT.fetch_add(1, Relaxed)) % all;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
