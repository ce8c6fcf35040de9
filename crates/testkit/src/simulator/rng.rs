//! Random numbers that are the same on every machine and with every version of every crate.
//!
//! `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): 64 bits of state,
//! passes `BigCrush`, and splits well, so each service has a stream of its own and one more service changes no other's.

use std::f64::consts::TAU;

/// The increment of the published generator: the golden ratio in 64 bits.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bits of a fraction that a double holds exactly.
const FRACTION_BITS: u32 = 53;

/// A stream of random numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The stream of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream number `index` of this one's seed; does not move this one.
    #[must_use]
    pub fn stream(&self, index: u64) -> Self {
        let mut mixed = Self::new(self.state ^ index.wrapping_mul(GAMMA).rotate_left(17));
        Self::new(mixed.bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// 128 random bits, for ids.
    pub fn bits_128(&mut self) -> u128 {
        u128::from(self.bits()) << 64 | u128::from(self.bits())
    }

    /// Between 0 (included) and 1 (not).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> (u64::BITS - FRACTION_BITS)) as f64 / (1u64 << FRACTION_BITS) as f64
    }

    /// Between 0 (not) and 1 (included): for logarithms.
    fn positive(&mut self) -> f64 {
        1.0 - self.uniform()
    }

    /// Below `end`; 0 when that is 0. The bias is below one in 2^32 for the sizes used here.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from((u128::from(self.bits()) * end as u128) >> u64::BITS).unwrap_or(0)
    }

    /// Exponentially distributed.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.positive().ln() * mean
    }

    /// Normally distributed around 0 with deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.positive().ln()).sqrt() * (TAU * self.uniform()).cos()
    }

    /// Log-normal with this median and the deviation of its logarithm.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// Gamma distributed (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000); shapes below
    /// 1 by the boost of the same paper.
    pub fn gamma(&mut self, shape: f64, scale: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.positive().powf(1.0 / shape);
            return self.gamma(shape + 1.0, scale) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.positive().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * scale;
            }
        }
    }

    /// Weibull distributed.
    pub fn weibull(&mut self, shape: f64, scale: f64) -> f64 {
        scale * (-self.positive().ln()).powf(1.0 / shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first outputs for seed 1234567, as in the reference implementation of xoshiro's authors.
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.bits(), 6_457_827_717_110_365_317);
        assert_eq!(rng.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn streams_differ_and_are_repeatable() {
        let rng = Rng::new(7);
        assert_eq!(rng.stream(1), rng.stream(1));
        assert_ne!(rng.stream(1), rng.stream(2));
    }

    #[test]
    fn the_distributions_have_their_means() {
        const DRAWS: usize = 20_000;
        let mean = |draw: fn(&mut Rng) -> f64| {
            let mut rng = Rng::new(42);
            (0..DRAWS).map(|_| draw(&mut rng)).sum::<f64>() / DRAWS as f64
        };
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 0.05, "{found} for {expected}");
        };
        near(mean(Rng::uniform), 0.5);
        near(mean(|rng| rng.exponential(3.0)), 3.0);
        near(mean(|rng| rng.gamma(0.5, 2.0)), 1.0);
        near(mean(|rng| rng.gamma(4.0, 2.0)), 8.0);
        // Scale times gamma(1 + 1/2).
        near(mean(|rng| rng.weibull(2.0, 1.0)), 0.8862);
        near(mean(|rng| rng.log_normal(1.0, 0.5)), (0.125f64).exp());
        near(mean(|rng| rng.below(11) as f64), 5.0);
    }
}
