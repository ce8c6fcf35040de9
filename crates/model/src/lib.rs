//! Models on this machine: read, kept once by their content, found by name.
//!
//! A model is one GGUF file. [`gguf`] reads what such a file says of itself, and trusts none of it; [`store`] keeps the
//! file under its SHA-256, read-only, and names beside it; [`catalog`] knows where others are. What an instance is shown is the file in the store itself, so
//! all instances of a model share one copy on disk and in the page cache.
//!
//! Called by `server` (imports, lists, removals) and `site-local` (what a deployment runs). Everything here blocks: it
//! is work on files.

pub mod catalog;
pub mod gguf;
pub mod memory;
pub mod source;
pub mod store;

pub use gguf::Gguf;
pub use source::Source;
pub use store::{Digest, Error, Model, ModelStore, Taken};
