//! The edge on real sockets, from outside: every upstream is a small server, every client a plain connection.

#![expect(clippy::expect_used, reason = "a test that cannot go on says why and fails")]

#[path = "edge/choose.rs"]
mod choose;
#[path = "edge/control.rs"]
mod control;
#[path = "edge/errors.rs"]
mod errors;
#[path = "edge/forward.rs"]
mod forward;
#[path = "edge/harness.rs"]
mod harness;
#[path = "edge/hold.rs"]
mod hold;
#[path = "edge/light.rs"]
mod light;
#[path = "edge/protocols.rs"]
mod protocols;
#[path = "edge/tcp.rs"]
mod tcp;
#[path = "edge/tls.rs"]
mod tls;
#[path = "edge/trace.rs"]
mod trace;
