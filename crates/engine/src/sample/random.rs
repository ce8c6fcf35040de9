//! Numbers from a seed, the same on every machine and in every version: a seed in a request is a promise.

/// xoshiro256** seeded by splitmix64 (Blackman and Vigna, <https://prng.di.unimi.it/>): small, fast, and fixed for
/// good, which a random number crate does not promise.
#[derive(Debug, Clone)]
pub(crate) struct Random([u64; 4]);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let state = &mut self.0;
        let result = state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        result
    }

    /// Evenly from 0 up to 1, 1 never.
    pub(crate) fn unit(&mut self) -> f32 {
        /// Bits of the fraction of an `f32`.
        const BITS: u32 = 24;
        #[expect(clippy::cast_precision_loss, reason = "24 bits are exact in an `f32`")]
        let value = (self.next() >> (u64::BITS - BITS)) as f32;
        value / (1_u32 << BITS) as f32
    }
}
