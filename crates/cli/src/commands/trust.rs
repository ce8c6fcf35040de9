//! `tram trust [--remove]`: arguments only; the composition root knows the local authority.

use std::path::PathBuf;

use crate::settings::Flags;

/// Arguments of `trust`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Take the authority out of the system's store again
    #[arg(long)]
    pub remove: bool,
    /// Where the server keeps its things.
    #[command(flatten)]
    pub place: Place,
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
