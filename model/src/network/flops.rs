//! How many floating-point operations a forward pass takes.

use super::inference::Inference;
use crate::Configuration;

impl Configuration {
    /// Floating-point operations of the matrix products and the attention of one pass over sequences, each given as its (tokens,
    /// masked positions), up to the logits at masked positions: what a model of this shape takes, whoever computes it. As
    /// [`Inference::flops`] without its shortcuts, and 2·M·E·V for the decoder, V being the words.
    #[must_use]
    pub fn flops(&self, sequences: impl Iterator<Item = (usize, usize)>) -> u64 {
        let sums = Sums::of(sequences);
        let decoder = 2 * sums.masked * self.embedding_size as u64 * self.vocabulary_size as u64;
        sums.flops(self, false, false) + decoder
    }
}

/// Of sequences: their tokens, masked positions, and pairs of what attends and what is attended to.
struct Sums {
    tokens: u64,
    masked: u64,
    pairs: u64,
    masked_pairs: u64,
}

impl Inference {
    /// Floating-point operations of the matrix products and the attention of one pass over sequences, each given as its (tokens,
    /// masked positions); a multiplication and an addition count as two, and element-wise work is left out.
    ///
    /// With T tokens and M masked positions in all, s and m those of one sequence, H hidden, I intermediate and E embedding size, A
    /// heads and L layers:
    ///
    /// - factorised embedding: 2·T·E·H;
    /// - each layer but the last: 2·T·(4·H² + 2·H·I), attention 4·Σ s²·H; without 2·T·3·H² where the first layer is looked up;
    /// - the last layer, of which only masked rows are wanted: keys and values 2·T·2·H², the rest 2·M·(2·H² + 2·H·I),
    ///   attention 4·Σ m·s·H; or where queries absorb keys and values 2·M·2·H² for them, and attention 4·Σ m·s·H·A;
    /// - head: 2·M·H·E.
    #[must_use]
    pub fn flops(&self, sequences: impl Iterator<Item = (usize, usize)>) -> u64 {
        Sums::of(sequences).flops(self.configuration(), self.looks_up(), self.absorbs())
    }
}

impl Sums {
    fn of(sequences: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut sums = Self { tokens: 0, masked: 0, pairs: 0, masked_pairs: 0 };
        for (tokens, masked) in sequences.map(|(tokens, masked)| (tokens as u64, masked as u64)) {
            sums.tokens += tokens;
            sums.masked += masked;
            sums.pairs += tokens * tokens;
            sums.masked_pairs += masked * tokens;
        }
        sums
    }

    /// See [`Inference::flops`].
    fn flops(&self, configuration: &Configuration, looks_up: bool, absorbs: bool) -> u64 {
        let [h, i, e, heads, layers] = [
            configuration.hidden_size,
            configuration.intermediate_size,
            configuration.embedding_size,
            configuration.heads,
            configuration.layers,
        ]
        .map(|size| size as u64);
        let Self { tokens: t, masked: m, pairs, masked_pairs } = *self;
        let factorised = if e == h { 0 } else { 2 * t * e * h };
        let looked_up = if looks_up { 2 * t * 3 * h * h } else { 0 };
        let full_layer = 2 * t * (4 * h * h + 2 * h * i) + 4 * pairs * h;
        let (rows, wide) = if absorbs { (m, heads) } else { (t, 1) };
        let last_layer = 2 * rows * 2 * h * h + 2 * m * (2 * h * h + 2 * h * i) + 4 * masked_pairs * h * wide;
        factorised + (layers - 1) * full_layer - looked_up + last_layer + 2 * m * h * e
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{Activation, Architecture, Configuration, Parameters};
    use candle_core::Device;

    fn network(hidden_size: usize, embedding_size: usize) -> Inference {
        let architecture =
            if hidden_size == embedding_size { Architecture::Bert } else { Architecture::ElectraGenerator };
        let configuration = Configuration {
            architecture,
            vocabulary_size: 50,
            embedding_size,
            hidden_size,
            layers: 3,
            heads: 2,
            intermediate_size: 12,
            max_position_embeddings: 16,
            type_vocabulary_size: 2,
            activation: Activation::Gelu,
            layer_norm_eps: 1e-12,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            classifier_dropout: None,
            initializer_range: 0.02,
            tie_word_embeddings: true,
            pad_token_id: 0,
        };
        let parameters = Parameters::initialise(&configuration, 1, &Device::Cpu).unwrap();
        Inference::new(&configuration, &parameters).unwrap()
    }

    /// The same count, product by product.
    #[test]
    fn flops_are_those_of_the_products() {
        for (hidden, embedding, looks_up, absorbs) in [(8, 4, false, false), (8, 8, true, false), (64, 16, false, true)]
        {
            let network = network(hidden, embedding);
            assert_eq!((network.looks_up(), network.absorbs()), (looks_up, absorbs));
            let (h, e) = (hidden as u64, embedding as u64);
            let product = |rows: u64, inner: u64, columns: u64| 2 * rows * inner * columns;
            let mut expected = 0;
            for (tokens, masked) in [(5, 1), (9, 3)] {
                expected += if e == h { 0 } else { product(tokens, e, h) };
                for layer in 0..3 {
                    let rows = if layer == 2 { masked } else { tokens };
                    if layer > 0 || !looks_up {
                        expected += product(rows, h, h); // queries
                    }
                    let absorbed = layer == 2 && absorbs;
                    for _head in 0..2 {
                        let wide = if absorbed { h } else { h / 2 };
                        expected += product(rows, wide, tokens) + product(rows, tokens, wide);
                        if absorbed {
                            expected += product(rows, h / 2, h) + product(rows, h, h / 2);
                        } else if layer > 0 || !looks_up {
                            expected += 2 * product(tokens, h, h / 2); // keys, values
                        }
                    }
                    expected += product(rows, h, h) + product(rows, h, 12) + product(rows, 12, h);
                }
                expected += product(masked, h, e);
            }
            let sequences = || [(5, 1), (9, 3)].into_iter();
            assert_eq!(network.flops(sequences()), expected, "{hidden}, {embedding}");
            // 50 words; what is looked up or absorbed counts as if it was computed.
            let whole = network.configuration().flops(sequences()) - product(4, e, 50);
            if looks_up || absorbs {
                assert_ne!(whole, expected, "{hidden}, {embedding}");
            } else {
                assert_eq!(whole, expected, "{hidden}, {embedding}");
            }
        }
    }
}
