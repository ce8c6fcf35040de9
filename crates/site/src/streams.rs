//! Logs of instances and commands run in them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tram_types::{InstanceId, Timestamp};

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The program's standard output.
    Stdout,
    /// The program's standard error.
    Stderr,
    /// The platform's own words.
    Koyeb,
}

impl LogStream {
    /// As the wire contract writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Koyeb => "koyeb",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Of which instance.
    pub instance: InstanceId,
    /// When it was read.
    pub at: Timestamp,
    /// From where.
    pub stream: LogStream,
    /// Its text, without the line feed.
    pub message: String,
    /// Where it stands in the instance's log.
    pub cursor: LogCursor,
}

/// A place in an instance's log; grows with every line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogCursor(pub u64);

/// Which lines to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines after this one.
    pub after: Option<LogCursor>,
    /// Only lines of this time or later.
    pub start: Option<Timestamp>,
    /// Only lines before this time.
    pub end: Option<Timestamp>,
    /// Only these streams; empty means all.
    pub streams: Vec<LogStream>,
    /// At most so many lines.
    pub limit: usize,
    /// The newest lines instead of the oldest. The page itself is always oldest first.
    pub newest: bool,
}

/// Lines, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPage {
    /// The lines.
    pub entries: Vec<LogEntry>,
    /// Whether there are more that fit the query.
    pub has_more: bool,
}

/// A command to run in an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables beside those of the instance.
    pub env: Vec<(String, String)>,
    /// Whether it gets a terminal, and of which size.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// What goes to a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// No more input.
    CloseStdin,
    /// The terminal has a new size.
    Resize(TerminalSize),
}

/// What comes from a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// From its standard output, or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// It is over; always the last.
    Exited {
        /// Exit code, or 128 and the signal's number.
        code: i32,
    },
}

/// Frames that may wait in one direction of a session: bounds its memory while either side is slow.
pub const EXEC_CHANNEL_FRAMES: usize = 32;

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct ExecSession {
    /// To the command.
    pub input: mpsc::Sender<ExecInput>,
    /// From the command.
    pub output: mpsc::Receiver<ExecOutput>,
}
