//! `tram admin new-token|rotate-keys|backup`: arguments only; the composition root asks the running control plane.

use std::path::PathBuf;

use super::trust::Place;

/// Arguments of `admin`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the server keeps its things.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub action: AdminAction,
}

/// What the operator wants of the running control plane.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum AdminAction {
    /// Make another API token, print it and keep it as a context: the way back when the first one is lost
    NewToken,
    /// Encrypt every secret with a new key, while everything runs; copy the key file away afterwards
    RotateKeys,
    /// Write a copy of the SQLite database to a file that is not there yet, while everything runs
    Backup {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
