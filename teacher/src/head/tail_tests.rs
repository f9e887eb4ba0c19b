//! Tests of [`super`], against the distribution itself.

use super::super::label_rows;
use super::*;
use model::random::Philox;

/// The decoder's weight is 0: the logits of every row are the bias.
fn decoder(logits: &[f32], words: usize) -> Decoder {
    Decoder::new(&vec![0.0; logits.len()], logits, words)
}

/// The label of one row for u.
fn label(logits: &[f32], words: usize, top_k: usize, samples: usize, uniforms: &[f64]) -> Label {
    let rows = uniforms.len();
    let tail = (samples > 0).then_some(Tail { samples, uniforms });
    let (hidden, golds) = (vec![0.0; rows], vec![0; rows]);
    label_rows(&decoder(logits, words), &hidden, &golds, top_k, tail, &mut HeadScratch::default()).expect("finite")
}

/// Probabilities of all rows of the decoder.
fn probabilities(logits: &[f32]) -> Vec<f64> {
    let maximum = logits.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - maximum).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Logits of different shapes: steep, flat, one large token among equals, Zipf, and nearly nothing beyond the first.
fn shapes(vocabulary: usize) -> Vec<Vec<f32>> {
    let stream = Philox::new(7, "test", &[]);
    let each = |logit: &dyn Fn(usize) -> f32| (0..vocabulary).map(logit).collect::<Vec<f32>>();
    let place = |id: usize| stream.below(1 << 20, id as u64, 0) as f32 / (1 << 20) as f32;
    vec![
        each(&|id| 3.0 * stream.normal(id as u64, 1) as f32),
        each(&|id| 1e-3 * place(id)),
        each(&|id| if id == vocabulary / 2 { 6.0 } else { 0.0 }),
        each(&|id| -((1 + (id * 7919) % vocabulary) as f32).ln()),
        each(&|id| if id == 3 { 60.0 } else { place(id) }),
    ]
}

/// Σ w_i f(i) is Σ p_i f(i) on average over u, for the indicator of every token: the points for evenly spread u cut every token's stretch
/// as often as its length says, to within one.
#[test]
fn the_entries_stand_for_the_distribution_without_bias() {
    const GRID: usize = 4000;
    let uniforms: Vec<f64> = (0..GRID).map(|at| (at as f64 + 0.5) / GRID as f64).collect();
    for (vocabulary, words) in [(40, 40), (600, 590), (1500, 1500)] {
        for (number, logits) in shapes(vocabulary).iter().enumerate() {
            let p = probabilities(logits);
            for (top_k, samples) in [(4, 3), (8, 4), (8, 1), (20, 16)] {
                let what = format!("{vocabulary} tokens, shape {number}, {samples} of {top_k}");
                let found = label(logits, words, top_k, samples, &uniforms);
                let mut mean = vec![0.0; vocabulary];
                let rows = found.top_ids.chunks(top_k).zip(found.top_logits.chunks(top_k)).zip(&found.log_sum_exp);
                let mut largest = 0.0_f64;
                for ((ids, logits), log_sum_exp) in rows {
                    let weights = logits.iter().map(|logit| (f64::from(*logit) - f64::from(*log_sum_exp)).exp());
                    for (id, weight) in ids.iter().zip(weights) {
                        mean[*id as usize] += weight / GRID as f64;
                        largest = largest.max(weight);
                    }
                }
                for (id, (mean, p)) in mean.iter().zip(&p).enumerate() {
                    let expected = if id < words { *p } else { 0.0 };
                    let bound = 2.0 * largest / GRID as f64 + 2e-6;
                    assert!((mean - expected).abs() < bound, "{what}: token {id}: {mean}, not {expected}");
                }
            }
        }
    }
}

/// What is drawn by chance is unbiased too: 99.99 % of z-scores are below 3.9, and a head has none of the noise.
#[test]
fn random_draws_are_unbiased_within_their_noise() {
    const DRAWS: usize = 20_000;
    let stream = Philox::new(11, "test", &[]);
    let uniforms: Vec<f64> = (0..DRAWS as u64).map(|at| stream.uniform(at, 0)).collect();
    let logits = &shapes(700)[0];
    let p = probabilities(logits);
    let f = |id: u32| f64::from(id % 7) + f64::from(id).sqrt();
    let expected: f64 = p.iter().zip(0..).map(|(p, id)| p * f(id)).sum();
    let found = label(logits, 700, 8, 4, &uniforms);
    let rows = found.top_ids.chunks(8).zip(found.top_logits.chunks(8)).zip(&found.log_sum_exp);
    let estimates = rows.map(|((ids, logits), z)| {
        let terms = ids.iter().zip(logits);
        terms.map(|(id, logit)| (f64::from(*logit) - f64::from(*z)).exp() * f(*id)).sum::<f64>()
    });
    let estimates: Vec<f64> = estimates.collect();
    let mean = estimates.iter().sum::<f64>() / DRAWS as f64;
    let variance = estimates.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (DRAWS - 1) as f64;
    let z = (mean - expected) / (variance / DRAWS as f64).sqrt();
    assert!(variance > 1e-3 && z.abs() < 3.9, "{mean} for {expected}: z = {z}");
}

#[test]
fn entries_are_an_exact_head_then_equal_draws_and_add_up_to_one() {
    for (number, logits) in shapes(1200).iter().enumerate() {
        let best = label(logits, 1200, 8, 0, &[0.0]);
        for uniform in [0.0, 0.3, 0.999_999_999] {
            for samples in 1..8 {
                let what = format!("shape {number}, {samples} samples, {uniform}");
                let found = label(logits, 1200, 8, samples, &[uniform]);
                assert_eq!((&found.log_sum_exp, &found.gold_logits), (&best.log_sum_exp, &best.gold_logits), "{what}");
                let exact = (0..8).take_while(|at| found.top_ids[*at] == best.top_ids[*at]).count();
                assert!(exact >= 8 - samples, "{what}: {found:?}");
                assert_eq!(found.top_logits[..8 - samples], best.top_logits[..8 - samples], "{what}");
                let mut ids = found.top_ids.clone();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), 8, "{what}: a token twice");
                let z = f64::from(best.log_sum_exp[0]);
                let sum: f64 = found.top_logits.iter().map(|logit| (f64::from(*logit) - z).exp()).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{what}: they add up to {sum}");
                let drawn: Vec<usize> =
                    (0..8).filter(|at| found.top_logits[*at] != logits[found.top_ids[*at] as usize]).collect();
                assert!(drawn.iter().all(|at| found.top_logits[*at] == found.top_logits[7]), "{what}: {found:?}");
                assert!(found.top_ids[8 - drawn.len()..].is_sorted(), "{what}: {found:?}");
            }
        }
    }
}

/// Rows by themselves, in blocks, behind others: the same draws.
#[test]
fn the_cut_of_rows_changes_no_draw() {
    let (rows, embedding, vocabulary, top_k) = (BLOCK_ROWS + 9, 16, 1300, 9);
    let stream = Philox::new(3, "test", &[]);
    let normal = |count: usize, index: u64| -> Vec<f32> {
        (0..count as u64).map(|at| stream.normal(at, index) as f32).collect()
    };
    let (hidden, weight, bias) =
        (normal(rows * embedding, 1), normal(vocabulary * embedding, 2), normal(vocabulary, 3));
    let decoder = Decoder::new(&weight, &bias, vocabulary);
    let uniforms: Vec<f64> = (0..rows as u64).map(|at| stream.uniform(at, 4)).collect();
    let golds = vec![5; rows];
    let mut scratch = HeadScratch::default();
    let mut label = |rows: std::ops::Range<usize>, samples: usize| {
        let tail = (samples > 0).then_some(Tail { samples, uniforms: &uniforms[rows.clone()] });
        let hidden = &hidden[rows.start * embedding..rows.end * embedding];
        label_rows(&decoder, hidden, &golds[rows], top_k, tail, &mut scratch).expect("finite")
    };
    let whole = label(0..rows, 5);
    assert_ne!(whole.top_ids, label(0..rows, 0).top_ids);
    for size in [1, 10, BLOCK_ROWS] {
        for first in (0..rows).step_by(size) {
            let end = rows.min(first + size);
            let part = label(first..end, 5);
            assert_eq!(part.top_ids, whole.top_ids[first * top_k..end * top_k], "{first}..{end}");
            assert_eq!(part.top_logits, whole.top_logits[first * top_k..end * top_k], "{first}..{end}");
        }
    }
}
