//! Requests to language models with the names of their prompts' blocks: the traces of Mooncake (Qin et al., FAST 2025).
//!
//! One JSON object a line: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and `hash_ids`, a
//! number for each block of 512 tokens that stands for this block and all before it.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::{Error, open};

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 512;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// Milliseconds since the start of the trace.
    #[serde(rename = "timestamp")]
    pub at_ms: u64,
    /// Tokens that are read.
    #[serde(rename = "input_length")]
    pub input: u32,
    /// Tokens that are written.
    #[serde(rename = "output_length")]
    pub output: u32,
    /// The names of the prompt's blocks; the last may be of fewer tokens.
    #[serde(rename = "hash_ids")]
    pub blocks: Vec<u64>,
}

/// Whether a file begins as these traces do.
pub(crate) fn is_one(path: &Path) -> Result<bool, Error> {
    let mut line = String::new();
    let mut reader = open(path)?;
    reader.read_line(&mut line).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(serde_json::from_str::<Request>(&line).is_ok())
}

/// Reads a trace, in the order of its times.
///
/// # Errors
/// When the file cannot be read, or is none.
pub fn read(path: &Path) -> Result<Vec<Request>, Error> {
    let mut requests = Vec::new();
    for (number, line) in open(path)?.lines().enumerate() {
        let line = line.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        if line.is_empty() {
            continue;
        }
        let request: Request = serde_json::from_str(&line).map_err(|error| Error::Format {
            path: path.to_owned(),
            line: number + 1,
            what: error.to_string(),
        })?;
        requests.push(request);
    }
    requests.sort_by_key(|request| request.at_ms);
    Ok(requests)
}
