//! Where output goes: data to standard output, talk to standard error.
//!
//! No command prints by itself. Meaning is never carried by colour alone; colour is used for one word, `error:`.

use std::{fmt::Display, sync::PoisonError};

use comfy_table::{Table, presets};
use serde_json::Value;

use crate::{
    error::Error,
    host::{Host, Sink},
};

/// The form of data on standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Aligned columns for people.
    #[default]
    Table,
    /// JSON as the API gave it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Speaks to the user. Cheap to clone.
#[derive(Clone)]
pub struct Printer {
    stdout: Sink,
    stderr: Sink,
    output: Output,
    quiet: bool,
    verbose: bool,
    colour: bool,
    live: bool,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Printer")
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

impl Printer {
    /// A printer on the host's streams.
    #[must_use]
    pub fn new(host: &Host, output: Output, quiet: bool, verbose: bool, no_colour: bool) -> Self {
        Self {
            stdout: host.stdout.clone(),
            stderr: host.stderr.clone(),
            output,
            quiet,
            verbose,
            colour: host.stderr_is_terminal && !no_colour,
            live: host.stderr_is_terminal && !quiet,
        }
    }

    /// The form of data that was asked for.
    #[must_use]
    pub fn output(&self) -> Output {
        self.output
    }

    /// Whether progress may be drawn in place on standard error.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Writes one line of data.
    ///
    /// # Errors
    /// When standard output cannot be written, such as after its reader has left.
    pub fn data(&self, line: impl Display) -> Result<(), Error> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Writes bytes of data as they are.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(Error::Output)
    }

    /// Writes bytes to standard error as they are: what a remote program wrote there. A failure to is dropped,
    /// for there is nobody to tell.
    pub fn error_bytes(&self, bytes: &[u8]) {
        let mut err = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = err.write_all(bytes).and_then(|()| err.flush());
    }

    /// Writes one value: as JSON or YAML when that was asked for, else by `human`.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn value(&self, value: &Value, human: impl FnOnce() -> String) -> Result<(), Error> {
        match self.output {
            Output::Table => self.data(human()),
            Output::Json => self.data(format_args!("{value:#}")),
            Output::Yaml => {
                let text = serde_norway::to_string(value).map_err(|source| {
                    Error::Output(std::io::Error::new(std::io::ErrorKind::InvalidData, source))
                })?;
                self.bytes(text.as_bytes())
            }
        }
    }

    /// Writes a list: JSON, YAML or a table whose rows `row` makes. An empty table is said on standard error.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn list(
        &self,
        items: &[Value],
        plural: &str,
        header: &[&str],
        row: impl Fn(&Value) -> Vec<String>,
    ) -> Result<(), Error> {
        if self.output == Output::Table && items.is_empty() {
            self.note(format_args!("no {plural}"));
            return Ok(());
        }
        self.value(&Value::Array(items.to_vec()), || {
            columns(Some(header), items.iter().map(&row))
        })
    }

    /// Says something, unless asked to be quiet.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            self.error_bytes(format!("{text}\n").as_bytes());
        }
    }

    /// Says that an order was taken. Programs get `value` of it as data; people have all of it in `said`.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn done(&self, value: &Value, said: impl Display) -> Result<(), Error> {
        self.note(said);
        match self.output {
            Output::Table => Ok(()),
            Output::Json | Output::Yaml => self.value(value, String::new),
        }
    }

    /// Says that something was done which may not be what was meant, unless asked to be quiet.
    pub fn warning(&self, text: impl Display) {
        self.note(format_args!("warning: {text}"));
    }

    /// Says something only when asked to be verbose.
    pub fn detail(&self, text: impl Display) {
        if self.verbose && !self.quiet {
            self.error_bytes(format!("{text}\n").as_bytes());
        }
    }

    /// Says what went wrong, why, and what to do about it.
    pub fn failure(&self, error: &Error) {
        if error.is_silent() {
            return;
        }
        let mark = if self.colour {
            "\u{1b}[1;31merror:\u{1b}[0m"
        } else {
            "error:"
        };
        let mut text = format!("{mark} {error}\n");
        let causes: Vec<String> =
            std::iter::successors(std::error::Error::source(error), |cause| cause.source())
                .map(|cause| cause.to_string().trim_end().replace('\n', "\n  "))
                .collect();
        // The layers between say what we said already; the last one says why.
        let from = if self.verbose {
            0
        } else {
            causes.len().saturating_sub(1)
        };
        for cause in causes.iter().skip(from) {
            text.push_str(&format!("  because: {cause}\n"));
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("hint: {hint}\n"));
        }
        self.error_bytes(text.as_bytes());
    }

    /// Writes what clap has to say: help and versions are data, refusals are talk.
    pub(crate) fn usage(&self, refusal: &clap::Error) {
        let styled = refusal.render();
        if refusal.use_stderr() {
            let text = if self.colour {
                styled.ansi().to_string()
            } else {
                styled.to_string()
            };
            self.error_bytes(text.as_bytes());
        } else {
            // A reader that has left has seen enough of the help.
            let _ = self.bytes(styled.to_string().as_bytes());
        }
    }
}

/// Aligns rows in columns, without borders and without spaces at the ends of lines.
#[must_use]
pub fn columns(header: Option<&[&str]>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(header) = header {
        table.set_header(header.iter().copied());
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Aligns names and values, for one object.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    columns(
        None,
        pairs
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| vec![format!("{name}:"), value.clone()]),
    )
}
