//! Which tokens are in the cells of llama.cpp's cache, whose they are, and which prompt begins with them.
//!
//! Pure bookkeeping beside the real cache: the engine's thread does to the cells what this says. Sequences share cells:
//! a prompt that begins as another did takes over that one's cells, and computes only the rest. What ended stays, as
//! long as nobody needs the room, for the next prompt that begins so. The one choice to know: only whole blocks of
//! [`BLOCK`] tokens are shared, found by a hash over all tokens up to the block's end, and checked token by token, so a
//! collision costs a look and never a wrong answer.
//!
//! The files: `blocks` (the cells and who holds them), `worth` (what goes first when room is needed).

mod blocks;
mod worth;

use std::collections::HashMap;

use blocks::{BlockId, Blocks};
use worth::Worth;

/// A sequence of llama.cpp's cache.
pub(crate) type SequenceId = i32;
/// One token of the model's vocabulary.
pub(crate) type Token = i32;

/// Tokens of a block, the unit of sharing. Smaller finds a little more and costs more look-ups; vLLM's unit is the same.
pub(crate) const BLOCK: usize = 16;

/// The beginning of a prompt that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    /// Whose cells hold it.
    pub(crate) sequence: SequenceId,
    /// Its length, whole blocks.
    pub(crate) tokens: usize,
    /// Of its cells, those that nobody runs.
    pub(crate) idle: usize,
}

#[derive(Debug)]
struct Sequence {
    /// Prompts of one tenant are not found for another's.
    scope: u64,
    tokens: Vec<Token>,
    blocks: Vec<BlockId>,
    /// Hash over everything up to the last whole block; None after a fork within a block, whose sequences no longer
    /// lie on the blocks' borders and are not found.
    chain: Option<u64>,
    /// What it is worth when nobody runs it; None while somebody does.
    kept: Option<Worth>,
}

/// The bookkeeping.
#[derive(Debug)]
pub(crate) struct Cache {
    cells: usize,
    blocks: Blocks,
    sequences: HashMap<SequenceId, Sequence>,
    index: HashMap<u64, BlockId>,
    free: Vec<SequenceId>,
    clock: worth::Clock,
    /// Whether ended sequences are kept and found at all.
    shares: bool,
}

impl Cache {
    /// `cells` tokens in up to `sequences` sequences. Without `shares` nothing is found again: for models whose state
    /// cannot be cut at a token (recurrent ones).
    pub(crate) fn new(cells: usize, sequences: SequenceId, shares: bool) -> Self {
        Self {
            cells,
            blocks: Blocks::default(),
            sequences: HashMap::new(),
            index: HashMap::new(),
            free: (0..sequences).rev().collect(),
            clock: worth::Clock::default(),
            shares,
        }
    }

    /// The longest beginning of `tokens` that is there, of this scope; never all of them, since the last token has to
    /// be computed for its logits.
    pub(crate) fn find(&self, scope: u64, tokens: &[Token]) -> Option<Match> {
        if !self.shares {
            return None;
        }
        let mut chain = scope;
        let mut found = None;
        let most = tokens.len().saturating_sub(1) / BLOCK;
        for (at, block) in tokens.chunks_exact(BLOCK).take(most).enumerate() {
            chain = blocks::hash(chain, block);
            let Some(holder) = self.index.get(&chain).and_then(|id| self.blocks.holder(*id)) else {
                break;
            };
            let end = (at + 1) * BLOCK;
            let same = self.sequences.get(&holder).is_some_and(|sequence| {
                sequence.scope == scope && sequence.tokens.get(..end) == tokens.get(..end)
            });
            if !same {
                break;
            }
            found = Some((holder, end));
        }
        found.map(|(sequence, tokens)| {
            let blocks = self
                .sequences
                .get(&sequence)
                .map(|held| &held.blocks[..tokens / BLOCK]);
            Match {
                sequence,
                tokens,
                idle: self.blocks.idle(blocks.unwrap_or_default()),
            }
        })
    }

    /// A new running sequence, which begins with what was found. None when no sequence is free: keep fewer.
    pub(crate) fn start(&mut self, scope: u64, found: Option<Match>) -> Option<SequenceId> {
        let id = self.free.pop()?;
        let mut sequence = Sequence {
            scope,
            tokens: Vec::new(),
            blocks: Vec::new(),
            chain: Some(scope),
            kept: None,
        };
        if let Some(found) = found
            && let Some(source) = self.sequences.get_mut(&found.sequence)
        {
            if let Some(worth) = &mut source.kept {
                worth.used(&mut self.clock);
            }
            sequence.tokens.extend_from_slice(&source.tokens[..found.tokens]);
            sequence
                .blocks
                .extend_from_slice(&source.blocks[..found.tokens / BLOCK]);
            sequence.chain = Some(sequence.tokens.chunks_exact(BLOCK).fold(scope, blocks::hash));
            for block in &sequence.blocks {
                self.blocks.hold(*block, id);
            }
        }
        self.sequences.insert(id, sequence);
        Some(id)
    }

    /// A running sequence that goes on from all that `source` has: another answer to the same prompt.
    pub(crate) fn fork(&mut self, source: SequenceId) -> Option<SequenceId> {
        let id = self.free.pop()?;
        let Some(source) = self.sequences.get_mut(&source) else {
            self.free.push(id);
            return None;
        };
        // Not by the number of tokens: after an earlier fork the blocks do not lie on whole numbers of them.
        if let Some(last) = source.blocks.last()
            && self.blocks.has_room(*last)
        {
            source.chain = None;
            self.blocks.seal(*last);
        }
        let sequence = Sequence {
            scope: source.scope,
            tokens: source.tokens.clone(),
            blocks: source.blocks.clone(),
            chain: source.chain,
            kept: None,
        };
        for block in &sequence.blocks {
            self.blocks.hold(*block, id);
        }
        self.sequences.insert(id, sequence);
        Some(id)
    }

    /// These tokens of a running sequence are in the cache now.
    pub(crate) fn extend(&mut self, id: SequenceId, tokens: &[Token]) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        for token in tokens {
            let last = sequence.blocks.last().copied();
            let block = match last.filter(|block| self.blocks.has_room(*block)) {
                Some(block) => block,
                None => {
                    let block = self.blocks.add(id);
                    sequence.blocks.push(block);
                    block
                }
            };
            sequence.tokens.push(*token);
            if self.blocks.fill(block)
                && let Some(chain) = sequence.chain
            {
                let from = sequence.tokens.len() - BLOCK;
                let chain = blocks::hash(chain, &sequence.tokens[from..]);
                sequence.chain = Some(chain);
                if let std::collections::hash_map::Entry::Vacant(entry) = self.index.entry(chain) {
                    entry.insert(block);
                    self.blocks.name(block, chain);
                }
            }
        }
    }

    /// Nobody runs this sequence any more. It is kept for prompts that begin so, if it can be found; whether it is.
    /// When not, its cells are free and have to be cleared.
    pub(crate) fn end(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return false;
        };
        // Only what this sequence brought in can be found by it: one that repeats another is a copy, and goes.
        let findable = self.shares
            && sequence
                .blocks
                .iter()
                .any(|block| self.blocks.only_holder(*block));
        if findable && sequence.tokens.len() >= BLOCK {
            sequence.kept = Some(Worth::new(&mut self.clock));
            for block in &sequence.blocks {
                self.blocks.park(*block);
            }
            true
        } else {
            self.drop(id);
            false
        }
    }

    /// Forgets a sequence, running or kept: its cells have to be cleared.
    pub(crate) fn drop(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        let running = sequence.kept.is_none();
        for block in sequence.blocks {
            if let Some(name) = self.blocks.release(block, id, running) {
                self.index.remove(&name);
            }
        }
        self.free.push(id);
    }

    /// Makes room for so many tokens: the kept sequences that go, the least valuable first. Their cells have to be
    /// cleared. It may not suffice.
    pub(crate) fn evict(&mut self, cells: usize) -> Vec<SequenceId> {
        let mut gone = Vec::new();
        while self.cells_free() < cells {
            let Some(id) = self.evict_one() else { break };
            gone.push(id);
        }
        gone
    }

    /// As many kept sequences, the least valuable first. Their cells have to be cleared.
    pub(crate) fn evict_sequences(&mut self, count: usize) -> Vec<SequenceId> {
        (0..count).map_while(|_| self.evict_one()).collect()
    }

    fn evict_one(&mut self) -> Option<SequenceId> {
        let kept = self
            .sequences
            .iter()
            .filter_map(|(id, sequence)| sequence.kept.map(|worth| (worth, *id)));
        let (worth, id) = kept.min()?;
        self.clock.passed(worth);
        self.drop(id);
        Some(id)
    }

    /// Cells that hold nothing.
    pub(crate) fn cells_free(&self) -> usize {
        self.cells.saturating_sub(self.blocks.cells())
    }

    /// Cells that hold nothing, or nothing that runs.
    pub(crate) fn cells_available(&self) -> usize {
        self.cells.saturating_sub(self.blocks.cells_running())
    }

    /// All cells.
    pub(crate) fn cells(&self) -> usize {
        self.cells
    }

    /// The sequences kept for prompts that begin so, the most valuable first: their scopes and tokens.
    pub(crate) fn kept_by_worth(&self) -> Vec<(SequenceId, u64, &[Token])> {
        let kept = self
            .sequences
            .iter()
            .filter_map(|(id, sequence)| sequence.kept.map(|worth| (worth, *id, sequence)));
        let mut kept: Vec<_> = kept.collect();
        kept.sort_unstable_by_key(|(worth, id, _)| std::cmp::Reverse((*worth, *id)));
        kept.into_iter()
            .map(|(_, id, sequence)| (id, sequence.scope, &sequence.tokens[..]))
            .collect()
    }

    /// Sequences kept for prompts that begin so.
    pub(crate) fn kept(&self) -> usize {
        self.sequences
            .values()
            .filter(|sequence| sequence.kept.is_some())
            .count()
    }
}

#[cfg(test)]
mod tests;
