//! The reference pages, written from the code: docs/reference/cli.md and docs/reference/settings.md.
//!
//! A test compares the pages with what this makes; `TRAM_TEST_WRITE_REFERENCE=1 cargo nextest run -p tram-cli`
//! writes them anew.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::{Arguments, settings::KEYS};

/// Width of the help texts in the page.
const HELP_WIDTH: usize = 100;

/// The page of every command with its help.
#[must_use]
pub fn commands() -> String {
    let mut page = String::from(
        "# Commands\n\nWritten from the program's own help; change the code, then this page follows \
         (crates/cli/src/reference.rs). The options under \"Everywhere\" hold for every command.\n",
    );
    let mut root = Arguments::command().term_width(HELP_WIDTH);
    root.build();
    section(&mut page, &mut root, "");
    page
}

fn section(page: &mut String, command: &mut clap::Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name()).trim().to_owned();
    let help = command
        .clone()
        .term_width(HELP_WIDTH)
        .render_long_help()
        .to_string();
    // What holds everywhere is told once, with the program itself.
    let own = match help.split_once("\nEverywhere:\n") {
        Some((own, _)) if !parent.is_empty() => own,
        _ => &help,
    };
    let lines: Vec<&str> = own.trim_end().lines().map(str::trim_end).collect();
    // Writing to a string does not fail.
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n"));
    for child in command.get_subcommands_mut() {
        if !child.is_hide_set() && child.get_name() != "help" {
            section(page, child, &name);
        }
    }
}

/// The page of every setting.
#[must_use]
pub fn settings() -> String {
    let mut page = String::from(
        "# Settings of tram up\n\nWritten from the code (crates/cli/src/settings.rs).\n\n\
         A setting is given as an argument, as an environment variable or in a TOML file: `/etc/tram/tram.toml`, or \
         the one that `--config` or `TRAM_CONFIG` names. An argument goes before a variable, a variable before the \
         file. Unknown keys in the file and unknown variables that start with `TRAM_` are refused.\n\n\
         | Key in the file | Argument | Variable | Default | Meaning |\n|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let meaning: Vec<&str> = key.doc.iter().map(|line| line.trim()).collect();
        let _ = writeln!(
            page,
            "| `{}` | `{} {}` | `{}` | `{}` | {} |",
            key.name,
            key.flag(),
            key.kind.replace('|', "\\|"),
            key.variable(),
            (key.default)(),
            meaning.join(" ")
        );
    }
    page
}
