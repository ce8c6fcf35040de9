//! `tram images import|ls|prune`: arguments only; the composition root knows the store of images.

use std::path::PathBuf;

use super::trust::Place;

/// Arguments of `images`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the server keeps its things.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub action: ImagesAction,
}

/// What to do with images.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum ImagesAction {
    /// Take an image from an archive (OCI layout or docker save)
    Import {
        /// The archive, a tar file
        #[arg(value_name = "ARCHIVE")]
        archive: PathBuf,
        /// Keep it under this name instead of the one in the archive
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
    },
    /// List the images
    #[command(visible_alias = "list")]
    Ls,
    /// Remove images that no service needs
    Prune,
}
