//! `[student]`

use super::placement::StudentPlacement;
use super::table::{Problems, Table};
use serde::Serialize;

/// BERT's standard deviation of initial weights, and the columns for which it was chosen.
const BERT_RANGE: f64 = 0.02;
const BERT_WIDTH: f64 = 768.0;

/// `[student]`
#[derive(Clone, Debug, Serialize)]
pub struct Student {
    /// Encoder layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Attention heads.
    pub heads: usize,
    /// Size of the feed-forward layer.
    pub intermediate_size: usize,
    /// Embedding size; smaller than `hidden_size`: factorised, an ELECTRA generator in transformers.
    pub embedding_size: usize,
    /// Tokens in an example, [CLS] and [SEP] included.
    pub max_sequence_length: usize,
    /// Dropout probability.
    pub dropout: f64,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// What the word embeddings begin with: `random` numbers, or those of the `teachers`.
    pub init: &'static str,
    /// Where it is trained.
    #[serde(flatten)]
    pub place: StudentPlacement,
}

impl Student {
    pub(super) fn read(mut table: Table) -> Self {
        let hidden_size = table.size("hidden_size", 256, 1..=65_536);
        let student = Self {
            layers: table.size("layers", 4, 1..=256),
            hidden_size,
            heads: table.size("heads", 4, 1..=1024),
            intermediate_size: table.size("intermediate_size", 4 * hidden_size, 1..=1_048_576),
            embedding_size: table.size("embedding_size", hidden_size, 1..=65_536),
            max_sequence_length: table.size("max_sequence_length", 128, 16..=8192),
            dropout: table.number("dropout", 0.1, 0.0..=0.9),
            initializer_range: table.number("initializer_range", initializer_range(hidden_size), 1e-6..=1.0),
            init: table.choice("init", &[("random", "random"), ("teachers", "teachers")]),
            place: StudentPlacement::read(&mut table),
        };
        table.finish();
        student
    }

    pub(super) fn validate(&self, problems: &Problems) {
        if !self.hidden_size.is_multiple_of(self.heads) {
            let message = format!("{} is not a divisor of hidden_size = {}", self.heads, self.hidden_size);
            problems.add("student.heads", message);
        }
        if self.embedding_size > self.hidden_size {
            let message = format!("{} is larger than hidden_size = {}", self.embedding_size, self.hidden_size);
            problems.add("student.embedding_size", message);
        }
    }
}

/// Initial weights of a layer of `hidden_size` columns: such that a sum over all of them is as large as in BERT, where it is 0.02 over 768
/// columns. With BERT's own range a narrow student learns how frequent words are, and then for hundreds of steps nothing.
fn initializer_range(hidden_size: usize) -> f64 {
    let range = BERT_RANGE * (BERT_WIDTH / hidden_size as f64).sqrt().max(1.0);
    (range * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_are_berts_at_its_width_and_larger_below() {
        for (hidden_size, expected) in [(128, 0.049), (256, 0.0346), (768, 0.02), (1024, 0.02)] {
            assert!((initializer_range(hidden_size) - expected).abs() < 1e-9, "{hidden_size}");
        }
    }
}
