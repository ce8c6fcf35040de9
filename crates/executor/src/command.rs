//! The life of the executor: it listens, starts the sandbox's own program, and ends with it or when told to.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::auth::Door;
use crate::children::{Children, Code};
use crate::identity::{self, Identity};
use crate::processes::Processes;
use crate::relay::Binding;
use crate::server::{State, serve};
use crate::settings::Settings;
use crate::streaming::Transfers;
use crate::terminal::Terminals;

/// Between the stop signal and the end by force.
const GRACE: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: u32 = 4096;
/// What a shell says of a program it does not find.
const NOT_FOUND: u8 = 127;
/// What a shell says of a program it cannot execute.
const NOT_EXECUTABLE: u8 = 126;

/// Runs the executor; returns its exit code.
///
/// # Errors
///
/// A text for the sandbox's logs: it cannot listen.
pub(crate) async fn run(settings: Settings) -> Result<u8, String> {
    let identity = Identity::at(identity::PATH);
    let door = Door::new(settings.access, identity.clone())
        .map_err(|error| format!("cannot read the sandbox's secret: {error}"))?;
    let children =
        Children::reaping(identity).map_err(|error| format!("cannot wait for processes: {error}"))?;
    let mut stop =
        signal(SignalKind::terminate()).map_err(|error| format!("cannot hear signals: {error}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| format!("cannot hear signals: {error}"))?;
    // First the one for programs: who reaches the other takes it that all is there.
    let proxy = listen(settings.proxy_port)?;
    let listener = listen(settings.port)?;
    let binding = Binding::default();
    tokio::spawn(binding.clone().relay(proxy));
    let state = Arc::new(State {
        door,
        children: children.clone(),
        processes: Processes::default(),
        binding,
        transfers: Transfers::default(),
        terminals: Terminals::default(),
    });
    tokio::spawn(serve(listener, state));

    let Some((program, arguments)) = settings.command.split_first() else {
        tokio::select! {
            _ = stop.recv() => {}
            _ = interrupt.recv() => {}
        }
        children.kill_all();
        return Ok(0);
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let (tree, mut end, _) = match children.start(&mut command) {
        Ok(started) => started,
        Err(error) => {
            crate::say(&format!("cannot run {}: {error}", program.display()));
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(if missing { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    let signalled = tokio::select! {
        ended = &mut end => {
            children.kill_all();
            return Ok(exit_code(ended.unwrap_or_default()));
        }
        _ = stop.recv() => Signal::TERM,
        _ = interrupt.recv() => Signal::INT,
    };
    tree.signal(signalled);
    let code = match timeout(GRACE, &mut end).await {
        Ok(ended) => exit_code(ended.unwrap_or_default()),
        Err(_) => exit_code(128 + Signal::KILL.as_raw()),
    };
    children.kill_all();
    Ok(code)
}

fn exit_code(code: Code) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Listens on every address, of both families where there are both.
fn listen(port: u16) -> Result<TcpListener, String> {
    let on = |socket: std::io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        // A restart must not wait for the connections of the one before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let both = on(
        TcpSocket::new_v6(),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    );
    let listener = match both {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            on(TcpSocket::new_v4(), SocketAddr::from(([0, 0, 0, 0], port)))
        }
        other => other,
    };
    listener.map_err(|error| format!("cannot listen on port {port}: {error}"))
}
