//! The cells, in blocks, and the sequences that hold them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{BLOCK, SequenceId, Token};

pub(super) type BlockId = u64;

/// The hash of a chain of blocks, made longer by one block. Fixed keys: collisions are looked through, not trusted.
pub(super) fn hash(chain: u64, block: &[Token]) -> u64 {
    let mut hasher = DefaultHasher::new();
    chain.hash(&mut hasher);
    block.hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug)]
struct Block {
    filled: usize,
    /// No more tokens come in, though there may be room: two sequences go on from here, each in blocks of its own.
    sealed: bool,
    /// Under which it is in the index.
    name: Option<u64>,
    holders: Vec<SequenceId>,
    /// How many of them run.
    running: usize,
}

#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: HashMap<BlockId, Block>,
    next: BlockId,
    cells: usize,
    cells_running: usize,
}

impl Blocks {
    /// A new, empty block of a running sequence.
    pub(super) fn add(&mut self, holder: SequenceId) -> BlockId {
        self.next += 1;
        let block = Block {
            filled: 0,
            sealed: false,
            name: None,
            holders: vec![holder],
            running: 1,
        };
        self.blocks.insert(self.next, block);
        self.next
    }

    pub(super) fn has_room(&self, id: BlockId) -> bool {
        let block = self.blocks.get(&id);
        block.is_some_and(|block| !block.sealed && block.filled < BLOCK)
    }

    /// One more token in a block of a running sequence; whether the block is whole now.
    pub(super) fn fill(&mut self, id: BlockId) -> bool {
        let Some(block) = self.blocks.get_mut(&id) else {
            return false;
        };
        block.filled += 1;
        self.cells += 1;
        self.cells_running += 1;
        block.filled == BLOCK
    }

    pub(super) fn seal(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.sealed = true;
        }
    }

    pub(super) fn name(&mut self, id: BlockId, name: u64) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.name = Some(name);
        }
    }

    /// One more running sequence holds this block.
    pub(super) fn hold(&mut self, id: BlockId, holder: SequenceId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.holders.push(holder);
            block.running += 1;
            if block.running == 1 {
                self.cells_running += block.filled;
            }
        }
    }

    /// One of its running sequences does not run any more, but keeps it.
    pub(super) fn park(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.running -= 1;
            if block.running == 0 {
                self.cells_running -= block.filled;
            }
        }
    }

    /// One sequence gives it up; the name to take out of the index when it was the last.
    pub(super) fn release(&mut self, id: BlockId, holder: SequenceId, running: bool) -> Option<u64> {
        if running {
            self.park(id);
        }
        let block = self.blocks.get_mut(&id)?;
        block.holders.retain(|other| *other != holder);
        if !block.holders.is_empty() {
            return None;
        }
        let block = self.blocks.remove(&id)?;
        self.cells -= block.filled;
        block.name
    }

    /// Any of those who hold it.
    pub(super) fn holder(&self, id: BlockId) -> Option<SequenceId> {
        self.blocks.get(&id)?.holders.first().copied()
    }

    /// Whether it is in the index and nobody else holds it.
    pub(super) fn only_holder(&self, id: BlockId) -> bool {
        let block = self.blocks.get(&id);
        block.is_some_and(|block| block.name.is_some() && block.holders.len() == 1)
    }

    /// Cells in these blocks that nobody runs.
    pub(super) fn idle(&self, ids: &[BlockId]) -> usize {
        let blocks = ids.iter().filter_map(|id| self.blocks.get(id));
        blocks
            .filter(|block| block.running == 0)
            .map(|block| block.filled)
            .sum()
    }

    pub(super) fn cells(&self) -> usize {
        self.cells
    }

    pub(super) fn cells_running(&self) -> usize {
        self.cells_running
    }
}
