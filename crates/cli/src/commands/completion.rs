//! `tram completion SHELL`: a script that completes our arguments.

use clap::CommandFactory as _;
use clap_complete::Shell as Script;

use crate::{error::Error, session::Session};

/// Shells that we write scripts for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Shell {
    /// For bash: put it in ~/.local/share/bash-completion/completions/tram
    Bash,
    /// For zsh: put it as _tram in a folder of $fpath
    Zsh,
    /// For fish: put it in ~/.config/fish/completions/tram.fish
    Fish,
}

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

pub(crate) fn run(session: &Session, arguments: Arguments) -> Result<(), Error> {
    let script = match arguments.shell {
        Shell::Bash => Script::Bash,
        Shell::Zsh => Script::Zsh,
        Shell::Fish => Script::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(script, &mut crate::Arguments::command(), "tram", &mut text);
    session.printer.bytes(&text)
}
