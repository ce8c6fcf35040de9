//! `tram trust [--remove|--print]`: arguments only; the composition root knows the local authority.

use std::path::PathBuf;

use crate::settings::Flags;

/// Arguments of `trust`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Take the authority out of the system's store again
    #[arg(long, conflicts_with = "print")]
    pub remove: bool,
    /// Write the authority's certificate to standard output and change nothing
    #[arg(long)]
    pub print: bool,
    /// Where the server keeps its things.
    #[command(flatten)]
    pub place: Place,
}

/// What to do with the local authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustAction {
    /// Put it into the system's store.
    Add,
    /// Take it out.
    Remove,
    /// Show its certificate.
    Print,
}

impl Arguments {
    /// What was asked for.
    pub(crate) fn action(&self) -> TrustAction {
        match (self.remove, self.print) {
            (true, _) => TrustAction::Remove,
            (false, true) => TrustAction::Print,
            (false, false) => TrustAction::Add,
        }
    }
}

/// The settings that say where the server keeps its things.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// Read settings from this file
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where the server keeps its things
    #[arg(long, value_name = "PATH", global = true)]
    pub data_dir: Option<String>,
}

impl Place {
    /// As settings given as arguments.
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            ..Flags::default()
        }
    }
}
