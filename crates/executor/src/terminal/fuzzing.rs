//! Terminals for fuzz targets: a real one, with nobody but the target at its other side.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{
    Opened, Order, PATIENCE, SIDE_MAX, Wanted, new_terminal, open_terminal, pass, signal, websocket,
};
use crate::children::Tree;

/// Bytes on their way to a terminal.
const ROOM_BYTES: usize = 64 << 10;
/// Read of a terminal at once.
const PIECE_BYTES: usize = 4096;

/// What became of a terminal.
#[derive(Debug)]
pub struct Passed {
    /// What arrived at the program's side.
    pub typed: Vec<u8>,
    /// Rows and columns in the end.
    pub size: (u16, u16),
}

/// Passes on what a client sends after its WebSocket was opened. `expected`: how many bytes of it are typed, where that is
/// known; they are waited for.
///
/// # Errors
/// When there is no terminal to be had.
pub async fn terminal(bytes: &[u8], expected: usize) -> io::Result<Passed> {
    let (master, name) = new_terminal((24, 80))?;
    let program = open_terminal(&name)?;
    let mut mode = rustix::termios::tcgetattr(&program)?;
    mode.make_raw();
    rustix::termios::tcsetattr(&program, rustix::termios::OptionalActions::Now, &mode)?;
    rustix::io::ioctl_fionbio(&program, true)?;
    let mut program = pipe::Receiver::from_owned_fd_unchecked(program)?;
    // Kept until what was typed is read: a terminal whose other side is closed has nothing to read any more.
    let kept = master.try_clone()?;
    // Kept, too: the program does not end.
    let (_ends, end) = oneshot::channel();
    let opened = Opened::of(master, Tree::of_nothing(), end)?;
    let (mut client, server) = tokio::io::duplex(ROOM_BYTES);
    let sending = async {
        // Who has heard enough takes no more.
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        // What it says does not matter; it must be able to say it.
        let mut said = Vec::new();
        let _ = client.read_to_end(&mut said).await;
    };
    let passing = async {
        let mut socket = websocket(server).await;
        pass(&mut socket, opened).await
    };
    let mut typed = Vec::new();
    let mut piece = vec![0; PIECE_BYTES];
    {
        let both = async { tokio::join!(sending, passing) };
        tokio::pin!(both);
        loop {
            tokio::select! {
                biased;
                read = program.read(&mut piece) => typed.extend_from_slice(piece.get(..read?).unwrap_or_default()),
                _ = &mut both => break,
            }
        }
    }
    while typed.len() < expected {
        let read = timeout(PATIENCE, program.read(&mut piece)).await??;
        typed.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
    let size = rustix::termios::tcgetwinsize(&kept)?;
    Ok(Passed {
        typed,
        size: (size.ws_row, size.ws_col),
    })
}

/// Reads what a client asks for in a query; whether it is to be had.
#[must_use]
pub fn query(text: &str) -> bool {
    let Ok(wanted) = Wanted::read(Some(text)) else {
        return false;
    };
    let sides = [wanted.size.0, wanted.size.1];
    assert!(sides.iter().all(|side| (1..=SIDE_MAX).contains(side)));
    for text in [wanted.command, wanted.cwd, Some(wanted.term)]
        .into_iter()
        .flatten()
    {
        assert!(!text.contains('\0') && !text.is_empty());
    }
    true
}

/// Whether a client's order is understood.
#[must_use]
pub fn order(text: &str) -> bool {
    match serde_json::from_str(text) {
        Ok(Order::Resize { .. }) => true,
        Ok(Order::Signal(name)) => signal(&name).is_some(),
        Err(_) => false,
    }
}
