// SPDX-License-Identifier: GPL-2.0
//! Medians, spreads, and ratios of what was measured in pairs.

use serde::Serialize;

/// The middle of some numbers, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Half of them are smaller.
    pub median: f64,
    /// The largest less the smallest, as a share of the median.
    pub spread: f64,
}

/// Sorts them, and takes what lies at this share of the way; 0.5 is the median.
pub fn quantile(numbers: &[f64], share: f64) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

impl Summary {
    /// None of no numbers.
    pub fn of(numbers: &[f64]) -> Option<Summary> {
        let median = quantile(numbers, 0.5)?;
        let spread = (quantile(numbers, 1.0)? - quantile(numbers, 0.0)?) / median;
        Some(Summary { median, spread })
    }
}

/// How many times one thing is another, measured side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The geometric mean of the rounds' ratios.
    pub mean: f64,
    /// Ends of the interval that holds the true one with a confidence of 95 %; none of a single round.
    pub interval: Option<(f64, f64)>,
}

/// Student's t for 95 % on both sides, by degrees of freedom from 1.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// For more degrees of freedom than are in the table: a little wide.
const T_MORE: f64 = 2.042;

impl Ratio {
    /// Of pairs: the first over the second. Ratios are averaged as logarithms, so that a/b and b/a say the same.
    pub fn of_pairs(pairs: &[(f64, f64)]) -> Option<Ratio> {
        let logs: Vec<f64> = pairs.iter().map(|(one, other)| (one / other).ln()).collect();
        let count = logs.len() as f64;
        let freedom = logs.len().checked_sub(1)?;
        let mean = logs.iter().sum::<f64>() / count;
        let interval = (freedom > 0).then(|| {
            let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / freedom as f64;
            let half = T.get(freedom - 1).unwrap_or(&T_MORE) * (variance / count).sqrt();
            ((mean - half).exp(), (mean + half).exp())
        });
        Some(Ratio { mean: mean.exp(), interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let numbers = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&numbers, 0.5), Some(2.5));
        assert_eq!(quantile(&numbers, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(Summary::of(&numbers), Some(Summary { median: 2.5, spread: 1.2 }));
    }

    #[test]
    fn a_ratio_holds_either_way() {
        let pairs = [(2.0, 1.0), (8.0, 2.0), (3.0, 1.0)];
        let there = Ratio::of_pairs(&pairs).unwrap();
        let back = Ratio::of_pairs(&pairs.map(|(one, other)| (other, one))).unwrap();
        assert!((there.mean - 24f64.cbrt()).abs() < 1e-12);
        assert!((there.mean * back.mean - 1.0).abs() < 1e-12);
        let ((low, high), (back_low, back_high)) = (there.interval.unwrap(), back.interval.unwrap());
        assert!(low < there.mean && there.mean < high);
        assert!((low * back_high - 1.0).abs() < 1e-12 && (high * back_low - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_interval_needs_two_rounds_and_is_a_point_when_they_agree() {
        assert_eq!(Ratio::of_pairs(&[(3.0, 2.0)]).unwrap().interval, None);
        assert_eq!(Ratio::of_pairs(&[]), None);
        let (low, high) = Ratio::of_pairs(&[(3.0, 2.0), (6.0, 4.0)]).unwrap().interval.unwrap();
        assert!((low - 1.5).abs() < 1e-12 && (high - 1.5).abs() < 1e-12);
    }

    #[test]
    fn the_interval_is_students() {
        // Logarithms 0, 1, 2: mean 1, deviation 1, so half of it is t(2) / sqrt(3).
        let pairs = [0f64, 1.0, 2.0].map(|log| (log.exp(), 1.0));
        let (low, high) = Ratio::of_pairs(&pairs).unwrap().interval.unwrap();
        let half = 4.303 / 3f64.sqrt();
        assert!((low.ln() - (1.0 - half)).abs() < 1e-9 && (high.ln() - (1.0 + half)).abs() < 1e-9);
    }
}
