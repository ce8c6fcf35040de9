//! The supervisor: one small single-threaded process per state directory.

/// The socket's file name in the state directory.
pub const SOCKET_NAME: &str = "supervisor.sock";
