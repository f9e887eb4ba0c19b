#![allow(clippy::unwrap_used)]

use super::chunk::Limits;
use super::*;
use candle_core::{DType, Device, Tensor, Var};
use model::random::Philox;

struct Case {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    embedding_size: usize,
    gold_ids: Vec<u32>,
    top_k: usize,
    top_ids: Vec<u32>,
    probabilities: Vec<f32>,
    tail_masses: Vec<f32>,
    gold_masses: Vec<f32>,
    weights: Vec<f32>,
    has_teacher: Vec<bool>,
}

/// What the loss computes.
#[derive(Debug, PartialEq)]
struct Outcome {
    sums: LossSums,
    of_hidden: Vec<f32>,
    of_weight: Vec<f32>,
    of_bias: Vec<f32>,
}

impl Case {
    /// With `tail`, the teacher's mass is shared by its tokens, a ghost bucket and, at every other position, the gold token besides.
    fn new(rows: usize, vocabulary: usize, embedding_size: usize, top_k: usize, tail: bool) -> Self {
        let random = Philox::new(3, "loss test", &[]);
        let normals =
            |count: usize, stream: u64| (0..count).map(|i| random.normal(i as u64, stream) as f32 * 0.7).collect();
        let ids = |count: usize, stream: u64| -> Vec<u32> {
            (0..count).map(|i| random.below(vocabulary as u64, i as u64, stream) as u32).collect()
        };
        let mut top_ids = ids(rows * top_k, 4);
        let mut gold_ids = ids(rows, 3);
        for (row, ids) in top_ids.chunks_mut(top_k).enumerate() {
            if row % 2 == 1 {
                ids[top_k - 1] = ids[0]; // Twice the same.
            }
            if row % 3 == 0 {
                gold_ids[row] = ids[top_k / 2];
            }
        }
        let mut probabilities = Vec::new();
        let (mut tail_masses, mut gold_masses) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let raw: Vec<f64> = (0..top_k).map(|j| random.uniform((row * top_k + j) as u64, 5)).collect();
            let rest = if tail { random.uniform(row as u64, 6) } else { 0.0 };
            let gold = if tail && row % 2 == 0 { random.uniform(row as u64, 7) } else { 0.0 };
            let sum = raw.iter().sum::<f64>() + rest + gold;
            probabilities.extend(raw.iter().map(|p| (p / sum) as f32));
            tail_masses.push((rest / sum) as f32);
            gold_masses.push((gold / sum) as f32);
        }
        Self {
            hidden: normals(rows * embedding_size, 0),
            weight: normals(vocabulary * embedding_size, 1),
            bias: normals(vocabulary, 2),
            embedding_size,
            gold_ids,
            top_k,
            top_ids,
            probabilities,
            tail_masses,
            gold_masses,
            weights: (0..rows).map(|i| 0.1 + (i % 7) as f32 / 10.0).collect(),
            has_teacher: (0..rows).map(|i| i % 4 != 2).collect(),
        }
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            gold_ids: &self.gold_ids,
            top_k: self.top_k,
            top_ids: &self.top_ids,
            probabilities: &self.probabilities,
            tail_masses: &self.tail_masses,
            gold_masses: &self.gold_masses,
            weights: &self.weights,
            has_teacher: &self.has_teacher,
        }
    }

    fn decoder(&self) -> Decoder<'_> {
        Decoder { weight: &self.weight, bias: &self.bias, embedding_size: self.embedding_size }
    }

    fn run(&self, lambda: f64, scratch: &mut Scratch) -> Outcome {
        // What is there already: decoder gradients are added to, dL/dh is overwritten.
        let (mut of_weight, mut of_bias) = (vec![1.0; self.weight.len()], vec![1.0; self.bias.len()]);
        let mut of_hidden = vec![f32::NAN; self.hidden.len()];
        let gradients = DecoderGradients { weight: &mut of_weight, bias: &mut of_bias };
        let targets = self.targets();
        let sums =
            linear_cross_entropy(self.decoder(), &self.hidden, &targets, lambda, gradients, &mut of_hidden, scratch);
        of_weight.iter_mut().chain(&mut of_bias).for_each(|x| *x -= 1.0);
        Outcome { sums: sums.unwrap(), of_hidden, of_weight, of_bias }
    }

    /// The definition, as candle operations in double precision with all logits at once: the loss, its two parts, and
    /// dL/dh, dL/dW, dL/db.
    fn reference(&self, lambda: f64) -> (f64, f64, f64, [Vec<f64>; 3]) {
        let (rows, vocabulary) = (self.gold_ids.len(), self.bias.len());
        let variable = |values: &[f32], shape: &[usize]| {
            let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
            Var::from_tensor(&tensor).unwrap().into_inner()
        };
        let hidden = variable(&self.hidden, &[rows, self.embedding_size]);
        let weight = variable(&self.weight, &[vocabulary, self.embedding_size]);
        let bias = variable(&self.bias, &[vocabulary]);
        let logits = hidden.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let log_q = candle_nn::ops::log_softmax(&logits, 1).unwrap(); // [n, V]

        let dense = |values: Vec<f64>| Tensor::from_vec(values, (rows, vocabulary), &Device::Cpu).unwrap();
        let column = |values: Vec<f64>| Tensor::from_vec(values, rows, &Device::Cpu).unwrap();
        let (mut gold, mut p) = (vec![0.0; rows * vocabulary], vec![0.0; rows * vocabulary]);
        let (mut is_tail, mut tail_mass) = (vec![1.0; rows * vocabulary], vec![0.0; rows]);
        for row in 0..rows {
            gold[row * vocabulary + self.gold_ids[row] as usize] = 1.0;
            for label in row * self.top_k..(row + 1) * self.top_k {
                let at = row * vocabulary + self.top_ids[label] as usize;
                if self.has_teacher[row] && self.probabilities[label] != 0.0 {
                    p[at] += f64::from(self.probabilities[label]);
                    is_tail[at] = 0.0;
                }
            }
            if self.has_teacher[row] {
                p[row * vocabulary + self.gold_ids[row] as usize] += f64::from(self.gold_masses[row]);
            }
            let has_tail = is_tail[row * vocabulary..(row + 1) * vocabulary].contains(&1.0);
            if has_tail && self.has_teacher[row] {
                tail_mass[row] = f64::from(self.tail_masses[row]);
            } else {
                is_tail[row * vocabulary] = 1.0; // So that the logarithm, times 0, is finite.
            }
        }
        let q_tail = (log_q.exp().unwrap() * dense(is_tail)).unwrap().sum(1).unwrap();
        let kd_tail = (q_tail.log().unwrap() * column(tail_mass)).unwrap();
        let kd = ((&log_q * dense(p)).unwrap().sum(1).unwrap() + kd_tail).unwrap().neg().unwrap();
        let mlm = (&log_q * dense(gold)).unwrap().sum(1).unwrap().neg().unwrap();
        let lambdas: Vec<f64> = self.has_teacher.iter().map(|has| if *has { lambda } else { 0.0 }).collect();
        let lambdas = column(lambdas);
        let weights = column(self.weights.iter().map(|weight| f64::from(*weight)).collect());
        let position = ((&lambdas * &kd).unwrap() + (lambdas.affine(-1.0, 1.0).unwrap() * &mlm).unwrap()).unwrap();
        let loss = (position * weights).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let list = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let sum = |tensor: &Tensor| tensor.sum_all().unwrap().to_scalar::<f64>().unwrap();
        let of = [&hidden, &weight, &bias].map(|variable| list(gradients.get(variable).unwrap()));
        (sum(&loss), sum(&kd), sum(&mlm), of)
    }
}

/// So small that several chunks, tiles and groups come up.
fn small() -> Scratch {
    let limits = Limits { logits_bytes: 0, positions_min: 64, tile_rows: 24, groups_max: 3 };
    let mut scratch = Scratch::default();
    scratch.limits = limits;
    scratch
}

fn assert_close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - expected).abs() <= 1e-5 * scale, "{what}[{at}]: {got} for {expected}");
    }
}

const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 8), (3, 63, 24), (65, 257, 64), (200, 63, 8), (200, 1000, 24), (1, 1000, 64), (3, 257, 8), (65, 1, 24)];

#[test]
fn loss_and_gradients_agree_with_autograd() {
    for ((n, vocabulary, embedding_size), top_k) in SHAPES.into_iter().flat_map(|shape| [(shape, 1), (shape, 8)]) {
        for (tail, lambda) in [false, true].into_iter().flat_map(|tail| [(tail, 0.0), (tail, 0.3), (tail, 1.0)]) {
            let case = Case::new(n, vocabulary, embedding_size, top_k, tail);
            let (loss, kd, mlm, [of_hidden, of_weight, of_bias]) = case.reference(lambda);
            let what =
                |part: &str| format!("{part}: n {n} V {vocabulary} E {embedding_size} k {top_k} {tail} λ {lambda}");
            for mut scratch in [Scratch::default(), small()] {
                let got = case.run(lambda, &mut scratch);
                for (got, expected) in [(got.sums.loss, loss), (got.sums.kd, kd), (got.sums.mlm, mlm)] {
                    assert!(
                        (got - expected).abs() <= 2e-6 * expected.abs().max(1.0),
                        "{}: {got} {expected}",
                        what("loss")
                    );
                }
                assert_close(&what("dh"), &got.of_hidden, &of_hidden);
                // They were added to 1, which costs digits.
                let near = |got: &[f32], expected: &[f64]| {
                    let pairs = got.iter().zip(expected);
                    let most = pairs.map(|(got, expected)| (f64::from(*got) - expected).abs()).fold(0.0, f64::max);
                    let scale = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                    most <= 1e-5 * scale + 3e-7
                };
                assert!(near(&got.of_weight, &of_weight), "{}", what("dW"));
                assert!(near(&got.of_bias, &of_bias), "{}", what("db"));
            }
        }
    }
}

/// The gradient along a random direction against the difference of two losses.
#[test]
fn gradients_agree_with_finite_differences() {
    for tail in [false, true] {
        let case = Case::new(20, 257, 24, 8, tail);
        let got = case.run(0.6, &mut small());
        let random = Philox::new(4, "direction", &[]);
        let moved = |step: f64| {
            let along = |values: &[f32], stream: u64| -> Vec<f32> {
                let values = values.iter().enumerate();
                values.map(|(i, x)| (f64::from(*x) + step * random.normal(i as u64, stream)) as f32).collect()
            };
            let (hidden, weight, bias) = (along(&case.hidden, 0), along(&case.weight, 1), along(&case.bias, 2));
            let moved = Case { hidden, weight, bias, ..Case::new(20, 257, 24, 8, tail) };
            moved.run(0.6, &mut small()).sums.loss
        };
        let difference = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        let (mut slope, mut squares) = (0.0, 0.0);
        for (gradient, stream) in [&got.of_hidden, &got.of_weight, &got.of_bias].into_iter().zip(0..) {
            for (gradient, i) in gradient.iter().zip(0..) {
                slope += f64::from(*gradient) * random.normal(i, stream);
                squares += f64::from(*gradient).powi(2);
            }
        }
        // The norm is what slopes in random directions are like.
        assert!((difference - slope).abs() < 2e-3 * squares.sqrt(), "{difference} for {slope}");
    }
}

#[test]
fn threads_and_used_buffers_change_no_bit() {
    let case = Case::new(200, 1000, 24, 8, true);
    let run = |threads: usize, scratch: &mut Scratch| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run(0.3, scratch))
    };
    for fresh in [Scratch::default, small] {
        let mut used = fresh();
        let one = run(1, &mut used);
        assert!(one == run(2, &mut fresh()) && one == run(3, &mut fresh()));
        let mut larger = Case::new(130, 1100, 64, 2, false);
        larger.hidden[5] = f32::NAN;
        larger.run(0.5, &mut used);
        assert_eq!(one, run(2, &mut used), "what another batch left in the buffers");
    }
}

#[test]
fn a_ghost_bucket_without_mass_or_place_is_finite() {
    // The student gives its last token, which the teacher does not know, next to nothing, or has none.
    for (vocabulary, last_logit, tail_mass) in
        [(4, -50.0, 0.3), (4, -200.0, 0.3), (4, -200.0, 1e-30), (4, 5.0, 0.0), (3, 0.0, 0.3), (3, 0.0, 1e-30)]
    {
        let mut case = Case::new(1, vocabulary, 8, 3, true);
        case.hidden.fill(0.0);
        case.bias = vec![3.0, 2.0, 1.0, last_logit][..vocabulary].to_vec();
        (case.top_ids, case.gold_ids, case.weights) = (vec![0, 1, 2], vec![0], vec![1.0]);
        let mass = f32::from(u8::from(vocabulary == 3)).max(1.0 - tail_mass);
        (case.probabilities, case.tail_masses) = (vec![0.5 * mass, 0.25 * mass, 0.25 * mass], vec![tail_mass]);
        case.gold_masses.clear();
        let got = case.run(1.0, &mut Scratch::default());
        let what = format!("V {vocabulary}, {last_logit}, {tail_mass}: {got:?}");
        assert!(got.sums.loss.is_finite() && got.of_bias.iter().all(|x| x.is_finite()), "{what}");
        // The gradients of a softmax sum to 0; here they are q − target.
        assert!(got.of_bias.iter().sum::<f32>().abs() < 1e-5, "{what}");
        if vocabulary == 4 {
            let logits: Vec<f64> = case.bias.iter().map(|x| f64::from(*x)).collect();
            let z = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            let targets = case.probabilities.iter().chain(&case.tail_masses);
            let expected: f64 = targets.zip(&logits).map(|(p, x)| f64::from(*p) * (z - x)).sum();
            assert!((got.sums.kd - expected).abs() < 1e-5 * expected, "{what}, not {expected}");
            let q_last = (logits[3] - z).exp();
            assert!((f64::from(got.of_bias[3]) - (q_last - f64::from(tail_mass))).abs() < 1e-6, "{what}");
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in 0..3 {
            let mut case = Case::new(70, 300, 8, 3, true);
            let at = [case.top_ids[3] as usize, case.gold_ids[1] as usize, 299][place];
            match place {
                2 => case.hidden[65 * 8 + 3] = wrong,
                _ => case.bias[at] = wrong,
            }
            for mut scratch in [Scratch::default(), small()] {
                assert!(!case.run(0.5, &mut scratch).sums.loss.is_finite(), "{wrong} {place}");
            }
        }
    }
}

#[test]
fn entries_of_probability_0_count_as_absent() {
    let mut case = Case::new(65, 257, 24, 8, true);
    case.probabilities.iter_mut().skip(7).step_by(8).for_each(|p| *p = 0.0);
    let all = case.run(0.5, &mut small());
    case.probabilities = case.probabilities.chunks(8).flat_map(|row| row[..7].to_vec()).collect();
    case.top_ids = case.top_ids.chunks(8).flat_map(|row| row[..7].to_vec()).collect();
    case.top_k = 7;
    assert_eq!(case.run(0.5, &mut small()), all);
}

#[test]
fn scores_agree_with_the_loss_and_ties_go_to_the_lower_id() {
    let case = Case::new(200, 1000, 24, 3, false);
    for mut scratch in [Scratch::default(), small()] {
        let scores = score(case.decoder(), &case.hidden, &case.gold_ids, &mut scratch).unwrap();
        let sums = case.run(0.5, &mut scratch).sums;
        assert!((sums.mlm - scores.iter().map(|score| score.loss).sum::<f64>()).abs() < 1e-4);
        assert_eq!(sums.correct, scores.iter().filter(|score| score.correct).count() as u64);
        let explained = explain(case.decoder(), &case.hidden, &case.targets(), &mut scratch).unwrap();
        for ((score, position), gold) in scores.iter().zip(explained).zip(&case.gold_ids) {
            assert_eq!((score.best_id, score.correct), (position.best_id, score.best_id == *gold));
            assert!((score.best_probability - position.best_probability).abs() < 1e-6);
        }
    }

    // One hidden row of 1; logits are the bias. Tiles have 24 rows.
    for (highest, gold, correct) in [
        (vec![0, 1], 0, true),
        (vec![0, 1], 1, false),
        (vec![30, 70], 30, true),
        (vec![30, 70], 70, false),
        (vec![50], 50, true),
        (vec![50], 49, false),
        (vec![50], 99, false),
        (vec![], 0, true),
        (vec![], 24, false),
    ] {
        let mut bias = vec![0.5; 100];
        highest.iter().for_each(|id: &usize| bias[*id] = 2.0);
        let decoder = Decoder { weight: &[0.0; 100], bias: &bias, embedding_size: 1 };
        let scores = score(decoder, &[1.0], &[gold], &mut small()).unwrap();
        assert_eq!(scores[0].correct, correct, "{highest:?} {gold}");
        // The same with teacher's tokens, which are taken out.
        for top_ids in [[0, 30], [70, 50], [gold, 1]] {
            let (mut of_weight, mut of_bias, mut of_hidden) = ([0.0; 100], [0.0; 100], [0.0]);
            let targets = Targets {
                gold_ids: &[gold],
                top_k: 2,
                top_ids: &top_ids,
                probabilities: &[0.5; 2],
                tail_masses: &[],
                gold_masses: &[],
                weights: &[1.0],
                has_teacher: &[true],
            };
            let gradients = DecoderGradients { weight: &mut of_weight, bias: &mut of_bias };
            let sums =
                linear_cross_entropy(decoder, &[1.0], &targets, 0.5, gradients, &mut of_hidden, &mut small()).unwrap();
            assert_eq!(sums.correct, u64::from(correct), "{highest:?} {gold} {top_ids:?}");
        }
    }
}

#[test]
fn chunks_are_about_equal_and_bounded() {
    let sizes = |logits_bytes: usize, n: usize, vocabulary: usize| -> Vec<usize> {
        let limits = Limits { logits_bytes, ..Limits::default() };
        let chunks: Vec<_> = Cut::chunks(limits, n, vocabulary).collect();
        let firsts = chunks.iter().scan(0, |sum, (_, count)| Some(std::mem::replace(sum, *sum + count)));
        assert!(chunks.iter().map(|(first, _)| *first).eq(firsts));
        chunks.into_iter().map(|(_, count)| count).collect()
    };
    assert_eq!(sizes(64 << 20, 614, 40_000), [320, 294]);
    assert_eq!(sizes(64 << 20, 154, 99_112), [154]);
    assert_eq!(sizes(64 << 20, 154, 288_973), [154]);
    assert_eq!(sizes(1 << 20, 614, 289_000), [192, 192, 192, 38]);
    assert_eq!(sizes(64 << 20, 0, 40_000), [0; 0]);
}

#[test]
fn shapes_and_ids_are_checked() {
    let case = Case::new(5, 40, 4, 3, true);
    let run = |targets: Targets<'_>, hidden: usize, weight: usize, of_weight: usize, of_hidden: usize| {
        let (mut of_weight, mut of_bias) = (vec![0.0; of_weight], [0.0; 40]);
        let decoder = Decoder { weight: &case.weight[..weight], ..case.decoder() };
        let gradients = DecoderGradients { weight: &mut of_weight, bias: &mut of_bias };
        let (hidden, mut of_hidden) = (&case.hidden[..hidden], vec![0.0; of_hidden]);
        linear_cross_entropy(decoder, hidden, &targets, 0.5, gradients, &mut of_hidden, &mut small())
    };
    let targets = || case.targets();
    for (result, message) in [
        (run(Targets { gold_ids: &[0, 1, 2, 3, 40], ..targets() }, 20, 160, 160, 20), "gold label 40"),
        (run(Targets { gold_ids: &[0, 1], ..targets() }, 20, 160, 160, 20), "2 gold labels"),
        (run(Targets { top_ids: &[40; 15], ..targets() }, 20, 160, 160, 20), "label id 40"),
        (run(Targets { top_k: 2, ..targets() }, 20, 160, 160, 20), "2 labels each"),
        (run(Targets { weights: &[1.0; 4], ..targets() }, 20, 160, 160, 20), "4 weights"),
        (run(Targets { tail_masses: &[0.0; 4], ..targets() }, 20, 160, 160, 20), "4 tail masses"),
        (run(Targets { gold_masses: &[0.0; 6], ..targets() }, 20, 160, 160, 20), "6 gold masses"),
        (run(targets(), 16, 160, 160, 16), "4 masked rows"),
        (run(targets(), 19, 160, 160, 19), "19 numbers are no rows of 4"),
        (run(targets(), 20, 159, 159, 20), "159 weights"),
        (run(targets(), 20, 160, 159, 20), "159 and 40 gradients"),
        (run(targets(), 20, 160, 160, 19), "19 gradients"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(score(case.decoder(), &case.hidden, &[0, 1, 2, 3, 40], &mut small()).is_err());
    assert_eq!(score(case.decoder(), &[], &[], &mut small()).unwrap(), []);
}

#[test]
fn positions_are_explained_one_by_one() {
    for (rows, vocabulary, top_k, tail) in [(9, 40, 3, false), (70, 300, 4, true), (5, 3, 8, true)] {
        let case = Case::new(rows, vocabulary, 6, top_k, tail);
        let targets = case.targets();
        let explained = explain(case.decoder(), &case.hidden, &targets, &mut small()).unwrap();
        let sums = case.run(0.5, &mut small()).sums;
        let sum = |of: &dyn Fn(&PositionLoss) -> f64| explained.iter().map(of).sum::<f64>();
        assert!((sum(&|position| position.kd) - sums.kd).abs() < 1e-9 * sums.kd, "{sums:?}");
        assert!((sum(&|position| position.mlm) - sums.mlm).abs() < 1e-9 * sums.mlm, "{sums:?}");
        for (row, found) in explained.iter().enumerate() {
            let hidden = &case.hidden[row * 6..(row + 1) * 6];
            let logits = case.weight.chunks(6).zip(&case.bias).map(|(weight, bias)| {
                weight.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum::<f64>() + f64::from(*bias)
            });
            let powers: Vec<f64> = logits.map(f64::exp).collect();
            let best = (0..vocabulary).max_by(|one, other| powers[*one].total_cmp(&powers[*other])).unwrap();
            assert_eq!(found.best_id as usize, best, "row {row}");
            let probability = powers[best] / powers.iter().sum::<f64>();
            assert!((found.best_probability - probability).abs() < 1e-5, "row {row}: {found:?}, not {probability}");
            assert_eq!(found.kd != 0.0, case.has_teacher[row], "row {row}");
        }
    }
    let case = Case::new(5, 40, 4, 3, true);
    let targets = Targets { gold_ids: &[0, 1, 2, 3, 40], ..case.targets() };
    assert!(explain(case.decoder(), &case.hidden, &targets, &mut small()).is_err());
}
