//! The tree of arguments. Each command's own are beside it, in commands/.

use clap::Parser;

use crate::{commands::Command, printer::Output};

/// A sovereign serverless cloud on your own machines: an image goes in, a URL comes out
#[derive(Debug, Parser)]
#[command(
    name = "tram",
    version,
    propagate_version = false,
    disable_help_subcommand = true
)]
#[command(after_help = "Start with `sudo tram up`, then `tram deploy nginx --name hello --port 80`")]
pub struct Arguments {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Arguments that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Form of the data on standard output
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value = "table",
        help_heading = "Everywhere"
    )]
    pub output: Output,
    /// Say nothing but data and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// Say more about what is done
    #[arg(
        long,
        short,
        global = true,
        conflicts_with = "quiet",
        help_heading = "Everywhere"
    )]
    pub verbose: bool,
    /// Use no colour; setting NO_COLOR does the same
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_color: bool,
    /// Speak to the server of this context; setting TRAM_CONTEXT does the same
    #[arg(long, global = true, value_name = "NAME", help_heading = "Everywhere")]
    pub context: Option<String>,
}
