//! What to run where, as a URL says it.
//!
//! A browser gives the id alone and sends bodies as frames; a client without WebSocket gives everything. Names with
//! dots are no names of Rust, so the parameters are read here by hand and not by [`query!`](crate::query).

use utoipa::openapi::path::Parameter as Description;

use crate::query::{Parameter, Query, RawQuery};
use tram_types::FieldViolation;

const COMMAND: &str = "body.command";
const HEIGHT: &str = "body.tty_size.height";
const WIDTH: &str = "body.tty_size.width";
const STDIN_DATA: &str = "body.stdin.data";
const STDIN_CLOSE: &str = "body.stdin.close";
const DISABLE_TTY: &str = "body.disableTty";
/// The same, as the frames of some clients have it.
const DISABLE_TTY_SNAKE: &str = "body.disable_tty";

/// What a URL says.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) id: Option<String>,
    pub(super) id_type: Option<String>,
    /// Words of the command; empty ones count.
    pub(super) command: Vec<String>,
    /// Input of the command, base64.
    pub(super) stdin_data: Option<String>,
}

impl Query for Target {
    fn read(query: &RawQuery, wrong: &mut Vec<FieldViolation>) -> Self {
        // Checked and without effect: a command without a WebSocket has no terminal, and its input ends by itself.
        let _: Option<u16> = Parameter::read(HEIGHT, query, wrong);
        let _: Option<u16> = Parameter::read(WIDTH, query, wrong);
        for name in [STDIN_CLOSE, DISABLE_TTY, DISABLE_TTY_SNAKE] {
            let _ = bool::read(name, query, wrong);
        }
        Self {
            id: Parameter::read("id", query, wrong),
            id_type: Parameter::read("id_type", query, wrong),
            command: query.every(COMMAND).map(str::to_owned).collect(),
            stdin_data: Parameter::read(STDIN_DATA, query, wrong),
        }
    }

    fn describe() -> Vec<Description> {
        let mut out = Vec::new();
        for name in ["id", "id_type", HEIGHT, WIDTH, STDIN_DATA] {
            <Option<String>>::describe(name, &mut out);
        }
        <Vec<String>>::describe(COMMAND, &mut out);
        bool::describe(STDIN_CLOSE, &mut out);
        bool::describe(DISABLE_TTY, &mut out);
        out
    }
}
