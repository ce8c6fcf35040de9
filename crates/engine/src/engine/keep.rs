//! What was computed of prompts, from one start of the program to the next: saved when the thread ends, put back when a
//! prompt begins so.
//!
//! A sequence is put back when the first prompt comes that begins as it does, not at the start, which it would make
//! slower for everybody; from then on it is one of those that are kept in the cache.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llama_cpp_2::context::session::LlamaStateSeqFlags;
use llama_cpp_2::token::LlamaToken;

use super::{KEPT_MAX, Worker};
use crate::cache::{SequenceId, Token};
use crate::kept::{Kept, Making};
use crate::model::{Model, identity};

/// After so long no other sequence is begun, and what is there is put in place: whoever waits for the memory of this process
/// waits for that too.
const SAVE_WITHIN: Duration = Duration::from_secs(3);

/// Where prompts are kept, and how much of them.
#[derive(Debug, Clone)]
pub(crate) struct Keep {
    pub(crate) path: PathBuf,
    pub(crate) bytes_max: u64,
}

/// What the thread has of them.
#[derive(Debug)]
pub(super) struct Keeper {
    keep: Keep,
    identity: String,
    kept: Kept,
    scratch: Scratch,
}

/// A directory for what is on its way from or to the file, gone with this value.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("tram-engine-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in a place for what may be lost.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Keeper {
    /// Looks what an earlier life left. None where a model's sequences cannot be kept.
    pub(super) fn open(keep: Keep, model: &Model) -> Option<Self> {
        if !model.copies_prefixes {
            tracing::info!("prompts of this model cannot be kept beyond this process");
            return None;
        }
        // Another build of this program may compute, or lay out, something else.
        let opened = identity(Path::new("/proc/self/exe")).and_then(|program| {
            let identity = format!("{program} {}", model.identity);
            let kept = Kept::open(&keep.path, &identity);
            Ok((identity, kept, Scratch::new()?))
        });
        match opened {
            Ok((identity, kept, scratch)) => Some(Self {
                keep,
                identity,
                kept,
                scratch,
            }),
            Err(error) => {
                tracing::warn!(%error, "prompts are not kept beyond this process");
                None
            }
        }
    }
}

impl Worker<'_> {
    /// Puts a sequence of an earlier life into the cache if these tokens begin as it does, and as nothing in the cache.
    pub(super) fn recall(&mut self, scope: u64, tokens: &[Token]) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some((at, common)) = keeper.kept.find(scope, tokens) else {
            return;
        };
        let known = self.cache.find(scope, tokens).map_or(0, |found| found.tokens);
        let cells = keeper.kept.length(at);
        // What runs is not disturbed for it: it stays where it is for another time.
        if common <= known || cells > self.cache.cells_available() {
            return;
        }
        let began = Instant::now();
        let file = keeper.scratch.file("taken");
        let taken = keeper.kept.take(at, &file);
        let put = taken.map_err(|error| error.to_string()).and_then(|tokens| {
            self.put_back(scope, &tokens, &file)?;
            Ok(tokens.len())
        });
        let _ = std::fs::remove_file(&file);
        match put {
            Ok(tokens) => {
                self.shared
                    .figures(|figures| figures.recalled_tokens += tokens as u64);
                let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(tokens, milliseconds, "took up what was computed before the start");
            }
            Err(error) => tracing::warn!(error, "a prompt that was kept cannot be taken up"),
        }
    }

    fn put_back(&mut self, scope: u64, tokens: &[Token], file: &Path) -> Result<(), String> {
        for gone in self.cache.evict(tokens.len()) {
            self.clear(gone);
        }
        if self.cache.kept() >= usize::try_from(KEPT_MAX).unwrap_or_default() {
            for gone in self.cache.evict_sequences(1) {
                self.clear(gone);
            }
        }
        let sequence = self.cache.start(scope, None).ok_or("no sequence is free")?;
        match self.load(sequence, tokens, file) {
            Ok(()) => {
                self.cache.extend(sequence, tokens);
                self.end_sequence(sequence);
                Ok(())
            }
            Err(why) => {
                self.cache.drop(sequence);
                self.clear(sequence);
                Err(why)
            }
        }
    }

    fn load(&mut self, sequence: SequenceId, tokens: &[Token], file: &Path) -> Result<(), String> {
        let loaded = self.context.state_seq_load_file(file, sequence, tokens.len());
        let (loaded, _) = loaded.map_err(|error| error.to_string())?;
        let last = self.context.kv_cache_seq_pos_max(sequence);
        let same = loaded.iter().map(|token| token.0).eq(tokens.iter().copied());
        if same && usize::try_from(last).is_ok_and(|last| last + 1 == tokens.len()) {
            Ok(())
        } else {
            Err("it is not what it was".to_owned())
        }
    }

    /// Saves what the next start may want, the most valuable first.
    pub(super) fn keep(&mut self) {
        let Some(keeper) = self.keeper.take().filter(|_| self.stopping) else {
            return;
        };
        let began = Instant::now();
        match self.save(&keeper, began + SAVE_WITHIN) {
            Ok(0) => {}
            Ok(sequences) => {
                let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(sequences, milliseconds, "kept what was computed of prompts");
            }
            Err(error) => tracing::warn!(error, "what was computed of prompts is not kept"),
        }
    }

    fn save(&self, keeper: &Keeper, until: Instant) -> Result<usize, String> {
        let sequences = self.cache.kept_by_worth();
        if sequences.is_empty() {
            // What the file has is as good as it was.
            return Ok(0);
        }
        let said = |error: io::Error| error.to_string();
        let identity = keeper.identity.clone();
        let mut making =
            Making::new(&keeper.scratch.file("kept"), identity, keeper.keep.bytes_max).map_err(said)?;
        let one = keeper.scratch.file("one");
        for (id, scope, tokens) in sequences {
            if Instant::now() >= until {
                break;
            }
            let bytes = self
                .context
                .state_seq_get_size_ext(id, LlamaStateSeqFlags::empty());
            if making.has(scope, tokens) || !making.has_room(bytes as u64) {
                continue;
            }
            let tokens_there: Vec<LlamaToken> = tokens.iter().copied().map(LlamaToken).collect();
            let saved = self.context.state_seq_save_file(&one, id, &tokens_there);
            saved.map_err(|error| error.to_string())?;
            making.add(scope, tokens, &one).map_err(said)?;
        }
        making.add_rest(&keeper.kept, until).map_err(said)?;
        making.put(&keeper.keep.path).map_err(said)
    }
}
