//! What of prompts each replica holds, as far as can be told from what was sent to it.
//!
//! A prompt is a chain of blocks, each named by a hash of itself and all before it ([`chain`]), so a name stands for a
//! whole beginning. Who got a prompt holds all of its chain. A replica forgets what it used longest ago when it is full:
//! each block is remembered with the number of tokens that its replica had read when it was used last, and held no longer
//! than until the replica has read as many more as it can hold.
//!
//! Who holds a block holds all before it, so those who hold the deepest block are found by halving, and so are the next
//! ones: the time grows with the logarithm of the prompt's length, not with it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Depths at which it is looked who holds so much and no more: those who hold still less are better chosen by their load
/// alone, and the time of a choice stays bounded.
const DEPTHS_MAX: usize = 4;

/// Who used a block, and when.
#[derive(Debug, Clone, Copy)]
struct Holder {
    replica: u16,
    /// Tokens that it had read before.
    at: u64,
}

/// Names of blocks are hashes already.
#[derive(Debug, Default)]
struct Named(u64);

impl Hasher for Named {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, name: u64) {
        self.0 = name;
    }
}

type Blocks = HashMap<u64, Vec<Holder>, BuildHasherDefault<Named>>;

/// The blocks that replicas hold.
#[derive(Debug)]
pub struct Prefixes {
    block_tokens: u32,
    /// Two halves: when the young one is full it becomes the old one, and what nobody used since is gone.
    young: Blocks,
    old: Blocks,
    half_max: usize,
    /// Of each replica: tokens that it has read, and tokens that it can hold.
    replicas: Vec<(u64, u64)>,
}

impl Prefixes {
    /// `block_tokens`: how many tokens a block stands for. `blocks_max`: blocks that are remembered, of all replicas
    /// together.
    #[must_use]
    pub fn new(block_tokens: u32, blocks_max: usize) -> Self {
        Self {
            block_tokens: block_tokens.max(1),
            young: Blocks::default(),
            old: Blocks::default(),
            half_max: (blocks_max / 2).max(1),
            replicas: Vec::new(),
        }
    }

    /// Says how many tokens a replica can hold.
    pub fn set_capacity(&mut self, replica: u16, tokens: u64) {
        self.replica(replica).1 = tokens;
    }

    fn replica(&mut self, replica: u16) -> &mut (u64, u64) {
        let at = usize::from(replica);
        if at >= self.replicas.len() {
            self.replicas.resize(at + 1, (0, 0));
        }
        &mut self.replicas[at]
    }

    fn holders(&self, name: u64) -> Option<&[Holder]> {
        let found = self.young.get(&name).or_else(|| self.old.get(&name));
        found.map(Vec::as_slice)
    }

    fn holds(&self, holder: Holder) -> bool {
        self.replicas
            .get(usize::from(holder.replica))
            .is_some_and(|(read, capacity)| read.saturating_sub(holder.at) <= *capacity)
    }

    /// Tokens of the prompt that each replica holds, for those that hold any: `found(replica, tokens)`, the most first.
    /// A replica may be told twice; the first is what counts.
    pub fn find(&self, chain: &[u64], mut found: impl FnMut(u16, u32)) {
        let mut most = chain.len();
        // How many held the depth before: deeper ones than that are known.
        let mut before = 0;
        for _ in 0..DEPTHS_MAX {
            // The deepest block that more replicas have used than that.
            let (mut low, mut high) = (0, most);
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                let name = chain[middle - 1];
                if self.holders(name).is_some_and(|holders| holders.len() > before) {
                    low = middle;
                } else {
                    high = middle - 1;
                }
            }
            let Some(holders) = low.checked_sub(1).and_then(|at| self.holders(chain[at])) else {
                return;
            };
            let tokens = u32::try_from(low)
                .unwrap_or(u32::MAX)
                .saturating_mul(self.block_tokens);
            for holder in holders {
                if self.holds(*holder) {
                    found(holder.replica, tokens);
                }
            }
            before = holders.len();
            most = low - 1;
        }
    }

    /// Tokens of the prompt that one replica holds.
    #[must_use]
    pub fn held_by(&self, chain: &[u64], replica: u16) -> u32 {
        let (mut low, mut high) = (0, chain.len());
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let holders = self.holders(chain[middle - 1]).unwrap_or_default();
            if holders
                .iter()
                .any(|holder| holder.replica == replica && self.holds(*holder))
            {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        u32::try_from(low)
            .unwrap_or(u32::MAX)
            .saturating_mul(self.block_tokens)
    }

    /// Takes in that a prompt was sent to a replica, of which it had `uncached_tokens` to read.
    pub fn learn(&mut self, chain: &[u64], replica: u16, uncached_tokens: u32) {
        let state = self.replica(replica);
        state.0 += u64::from(uncached_tokens);
        let at = state.0;
        for name in chain {
            if self.young.len() >= self.half_max && !self.young.contains_key(name) {
                self.old = std::mem::take(&mut self.young);
            }
            let old = &mut self.old;
            let holders = self
                .young
                .entry(*name)
                .or_insert_with(|| old.remove(name).unwrap_or_default());
            match holders.iter_mut().find(|holder| holder.replica == replica) {
                Some(holder) => holder.at = at,
                None => {
                    let replicas = &self.replicas;
                    // Who forgot it makes room, so that numbers of holders keep their meaning.
                    holders.retain(|holder| {
                        replicas
                            .get(usize::from(holder.replica))
                            .is_some_and(|(read, capacity)| read.saturating_sub(holder.at) <= *capacity)
                    });
                    holders.push(Holder { replica, at });
                }
            }
        }
    }

    /// Takes in that an answer took room beside prompts.
    pub fn wrote(&mut self, replica: u16, tokens: u32) {
        self.replica(replica).0 += u64::from(tokens);
    }

    /// A replica holds nothing (any more).
    pub fn forget(&mut self, replica: u16) {
        for half in [&mut self.young, &mut self.old] {
            half.retain(|_, holders| {
                holders.retain(|holder| holder.replica != replica);
                !holders.is_empty()
            });
        }
        *self.replica(replica) = (0, 0);
    }
}

/// The names of a prompt's whole blocks of `block_bytes`. `seed`: what else must be the same, such as who asks, where
/// replicas share nothing between those who ask.
#[must_use]
pub fn chain(seed: u64, prompt: &[u8], block_bytes: usize) -> Vec<u64> {
    let mut name = mix(seed);
    let blocks = prompt.chunks_exact(block_bytes.max(1));
    blocks
        .map(|block| {
            for word in block.chunks(size_of::<u64>()) {
                let mut bytes = [0; size_of::<u64>()];
                bytes[..word.len()].copy_from_slice(word);
                name = mix(name ^ u64::from_le_bytes(bytes));
            }
            name
        })
        .collect()
}

/// The finisher of splitmix64 (Vigna): every bit of the input reaches every bit of the output.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
