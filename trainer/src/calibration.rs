//! Expected calibration error: how far a model's confidence is from how often it is right (Guo et al. 2017, "On Calibration of Modern
//! Neural Networks", equation 5).

/// Bins of equal width, as in the paper's experiments.
const BINS: usize = 15;

/// Predictions by how probable the model holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Calibration {
    bins: [Bin; BINS],
}

/// Predictions whose confidence is in ((m − 1)/M, m/M].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bin {
    predictions: u64,
    correct: u64,
    /// Sum over the predictions.
    confidence: f64,
}

impl Calibration {
    /// Adds a prediction: the probability of the most probable token, and whether that is the gold one.
    pub(crate) fn add(&mut self, confidence: f64, correct: bool) {
        // What was rounded, or is no number, is in the first or the last bin.
        let at = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        self.bins[at].add(&Bin { predictions: 1, correct: u64::from(correct), confidence });
    }

    /// Adds the predictions of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(bin, other)| bin.add(other));
    }

    /// Σ over the bins of |correct − Σ confidence|, divided by all predictions; between 0 and 1. `None` without predictions.
    pub(crate) fn error(&self) -> Option<f64> {
        let predictions: u64 = self.bins.iter().map(|bin| bin.predictions).sum();
        let gaps: f64 = self.bins.iter().map(|bin| (bin.correct as f64 - bin.confidence).abs()).sum();
        (predictions > 0).then(|| gaps / predictions as f64)
    }
}

impl Bin {
    fn add(&mut self, other: &Self) {
        self.predictions += other.predictions;
        self.correct += other.correct;
        self.confidence += other.confidence;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the paper writes it: per bin, its share of the predictions times |accuracy − mean confidence|.
    fn plain(predictions: &[(f64, bool)]) -> f64 {
        let in_bin = |m: usize| {
            let (low, high) = ((m - 1) as f64 / 15.0, m as f64 / 15.0);
            predictions.iter().filter(move |(confidence, _)| low < *confidence && *confidence <= high)
        };
        (1..=15).fold(0.0, |sum, m| {
            let count = in_bin(m).count() as f64;
            let accuracy = in_bin(m).filter(|(_, correct)| *correct).count() as f64 / count;
            let confidence = in_bin(m).map(|(confidence, _)| confidence).sum::<f64>() / count;
            if count > 0.0 { sum + count / predictions.len() as f64 * (accuracy - confidence).abs() } else { sum }
        })
    }

    fn check(predictions: &[(f64, bool)]) {
        let mut whole = Calibration::default();
        predictions.iter().for_each(|(confidence, correct)| whole.add(*confidence, *correct));
        let error = whole.error().unwrap_or(f64::NAN);
        assert!((error - plain(predictions)).abs() < 1e-12, "{error} instead of {}", plain(predictions));
        let (first, rest) = predictions.split_at(predictions.len() / 2);
        let mut parts = [Calibration::default(); 2];
        for (part, predictions) in parts.iter_mut().zip([first, rest]) {
            predictions.iter().for_each(|(confidence, correct)| part.add(*confidence, *correct));
        }
        let [mut merged, second] = parts;
        merged.merge(&second);
        assert!((merged.error().unwrap_or(f64::NAN) - error).abs() < 1e-12);
    }

    #[test]
    fn it_is_what_the_paper_defines() {
        check(&[(1.0, true)]);
        check(&[(1.0, false), (0.5, true), (0.5, false)]);
        // At the border of two bins: the lower one has it.
        check(&[(0.2, true), (0.21, false), (0.19, false)]);
        let mixed: Vec<(f64, bool)> = (1..=997).map(|i| ((f64::from(i) * 0.618).fract(), i % 3 == 0)).collect();
        check(&mixed);
    }

    #[test]
    fn what_is_no_probability_does_no_harm() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.error(), None);
        for confidence in [0.0, -1e-9, 1.0 + 1e-9] {
            calibration.add(confidence, true);
        }
        assert_eq!(calibration.bins.map(|bin| bin.predictions).iter().sum::<u64>(), 3);
    }
}
