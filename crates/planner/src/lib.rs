//! (desired, observed, policy, now) -> plan. Pure and synchronous.
