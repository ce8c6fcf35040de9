//! What the program is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Serve a language model over OpenAI's API, on llama.cpp's kernels
#[derive(Debug, Parser)]
#[command(name = "tram-engine", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load a model and serve it until told to stop
    Serve(Serve),
}

/// Answers at once when nothing else is said: throughput on few cores grows little beyond.
const PARALLEL_DEFAULT: u16 = 16;
/// Above, a step takes longer than a reader waits for the next word, on any machine.
const PARALLEL_MAX: i64 = 128;
/// Requests that wait when nothing else is said: of those behind, few would still be there when it was their turn.
const QUEUE_DEFAULT: usize = 256;

/// Guesses grow to this when they are right; more would make a step longer than it saves.
const GUESS_DEFAULT: u8 = 8;
/// What all guesses of a step have together.
const GUESS_MAX: i64 = 16;

/// Written in about a second; a whole context of a small model.
const KEEP_BYTES_DEFAULT: u64 = 512 << 20;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The model, a GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// The model's name in requests and answers; the file's without one
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Tokens that a prompt and its answer have together, at most; 8192 without, or fewer where the model knows fewer
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) context_length: Option<u32>,
    /// Answers that are generated at once
    #[arg(long, value_name = "NUMBER", default_value_t = PARALLEL_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1..=PARALLEL_MAX))]
    pub(crate) parallel: u16,
    /// Tokens of all prompts and answers together that fit into the cache; as many as the context has, without
    #[arg(long, value_name = "TOKENS")]
    pub(crate) cache_tokens: Option<u32>,
    /// Make embeddings of texts instead of generating any; models made for nothing else need not be told
    #[arg(long)]
    pub(crate) embeddings: bool,
    /// A change of the weights (LoRA, a GGUF file) that requests ask for by this name; may be given again
    #[arg(long = "adapter", value_name = "NAME=PATH", value_parser = adapter)]
    pub(crate) adapters: Vec<(String, PathBuf)>,
    /// A smaller model of the same vocabulary (a GGUF file) that guesses what this one says next
    #[arg(long, value_name = "PATH")]
    pub(crate) draft: Option<PathBuf>,
    /// A file that keeps what was computed of prompts from one start to the next: written on SIGTERM, read as it is needed
    #[arg(long, value_name = "PATH", env = "TRAM_ENGINE_KEEP")]
    pub(crate) keep: Option<PathBuf>,
    /// What that file has, at most, in bytes
    #[arg(long, value_name = "BYTES", env = "TRAM_ENGINE_KEEP_BYTES", default_value_t = KEEP_BYTES_DEFAULT)]
    pub(crate) keep_bytes: u64,
    /// Threads of the kernels; one for each processor without
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Requests that may wait; those beyond are refused with a time to come again
    #[arg(long, value_name = "NUMBER", default_value_t = QUEUE_DEFAULT)]
    pub(crate) queue: usize,
    /// Tokens that are guessed at a time where an answer repeats what was said before, or by the draft, at most; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = GUESS_DEFAULT,
          value_parser = clap::value_parser!(u8).range(..=GUESS_MAX))]
    pub(crate) guess_tokens: u8,
    /// A Jinja file in place of the model's own chat template
    #[arg(long, value_name = "PATH")]
    pub(crate) chat_template: Option<PathBuf>,
}

/// A name and the file that it stands for.
fn adapter(given: &str) -> Result<(String, PathBuf), String> {
    match given.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("an adapter has a name and a file: NAME=PATH".to_owned()),
    }
}

impl Serve {
    /// The name that the model is served under.
    pub(crate) fn name(&self) -> String {
        let file = || {
            self.model
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        };
        self.name
            .clone()
            .or_else(file)
            .unwrap_or_else(|| "model".to_owned())
    }

    pub(crate) fn threads(&self) -> usize {
        // Counts what the cgroup and the affinity leave.
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.map_or_else(all, usize::from)
    }
}
