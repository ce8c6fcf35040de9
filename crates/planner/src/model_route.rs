//! Where a question goes whose `model` is a route: to one of its targets, drawn by weight, and to its fallbacks after that.
//!
//! Pure, and called by the API's front. The choice to know: when the target that was drawn refuses, the other targets are
//! not tried, only the fallbacks. Weights divide traffic (a tenth for a new model, say); a target that fails must not push
//! its load onto one that was to have little.

/// The order in which targets are tried, as positions: first those of `weights`, then `fallbacks` behind them. `draw` is
/// from 0 (included) to 1 (excluded). A target of weight 0 is never drawn; without any that can be, the fallbacks are left.
#[must_use]
pub fn order(weights: &[u32], fallbacks: usize, draw: f64) -> Vec<usize> {
    let sum: f64 = weights.iter().copied().map(f64::from).sum();
    let mut left = draw.clamp(0.0, 1.0) * sum;
    let mut drawn = None;
    for (at, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
        // The last one stays should rounding leave a rest.
        drawn = Some(at);
        left -= f64::from(*weight);
        if left < 0.0 {
            break;
        }
    }
    let behind = weights.len()..weights.len().saturating_add(fallbacks);
    drawn.into_iter().chain(behind).collect()
}

/// Whether an answer with this status, before its first byte, sends the question on to the next: who refuses for want of
/// room, or fails, may be stood in for; who says that the question is wrong may not.
#[must_use]
pub fn goes_on(status: u16) -> bool {
    matches!(status, 429 | 500..=599)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_divide_what_is_drawn() {
        let drawn = |draw| order(&[9, 0, 1], 2, draw);
        assert_eq!(drawn(0.0), [0, 3, 4]);
        assert_eq!(drawn(0.899), [0, 3, 4]);
        assert_eq!(drawn(0.9), [2, 3, 4]);
        assert_eq!(drawn(1.0), [2, 3, 4]);
        assert_eq!(order(&[0], 1, 0.5), [1]);
        assert_eq!(order(&[], 0, 0.5), [0; 0]);
    }

    #[test]
    fn only_who_is_wrong_is_told_so() {
        for status in [429, 500, 503, 504] {
            assert!(goes_on(status));
        }
        for status in [200, 400, 404, 409, 413] {
            assert!(!goes_on(status));
        }
    }

    proptest! {
        #[test]
        fn each_comes_once_and_one_target_at_most(
            weights in prop::collection::vec(0_u32..5, 0..6),
            fallbacks in 0_usize..4,
            draw in 0.0_f64..1.0,
        ) {
            let order = order(&weights, fallbacks, draw);
            let targets = order.iter().filter(|at| **at < weights.len()).count();
            prop_assert_eq!(targets, usize::from(weights.iter().any(|weight| *weight > 0)));
            prop_assert_eq!(order.len(), targets + fallbacks);
            prop_assert!(order.iter().all(|at| weights.get(*at).is_none_or(|weight| *weight > 0)));
        }
    }
}
