#![allow(clippy::unwrap_used)]

use super::*;
use candle_core::{DType, Device, Var};
use model::random::Philox;

struct Case {
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    gold_ids: Vec<u32>,
    top_ids: Vec<u32>,
    probabilities: Vec<f32>,
    weights: Vec<f32>,
    has_teacher: Vec<bool>,
}

const K: usize = 3;

impl Case {
    fn new(rows: usize, vocabulary: usize, embedding: usize) -> Self {
        let random = Philox::new(3, "loss test", &[]);
        let tensor = |shape: &[usize], stream: u64| {
            let numbers = (0..shape.iter().product::<usize>()).map(|i| random.normal(i as u64, stream) as f32);
            Tensor::from_vec(numbers.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        let ids = |count: usize, stream: u64| -> Vec<u32> {
            (0..count).map(|i| random.below(vocabulary as u64, i as u64, stream) as u32).collect()
        };
        let mut top_ids = ids(rows * K, 4);
        top_ids[1] = top_ids[0];
        let probabilities = (0..rows).flat_map(|i| [0.5 + i as f32 / 100.0, 0.3, 0.2 - i as f32 / 100.0]).collect();
        Self {
            hidden: tensor(&[rows, embedding], 0),
            weight: tensor(&[vocabulary, embedding], 1),
            bias: tensor(&[vocabulary], 2),
            gold_ids: ids(rows, 3),
            top_ids,
            probabilities,
            weights: (0..rows).map(|i| 0.1 + i as f32 / 10.0).collect(),
            has_teacher: (0..rows).map(|i| i % 4 != 2).collect(),
        }
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            gold_ids: &self.gold_ids,
            top_k: K,
            top_ids: &self.top_ids,
            probabilities: &self.probabilities,
            weights: &self.weights,
            has_teacher: &self.has_teacher,
        }
    }

    /// The module's formula, as candle operations in double precision: the loss, and dL/dh, dL/dW, dL/db.
    fn reference(&self, lambda: f64) -> (f64, [Tensor; 3]) {
        let rows = self.gold_ids.len();
        let cpu = &Device::Cpu;
        let double = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let [hidden, weight, bias] = [&self.hidden, &self.weight, &self.bias]
            .map(|tensor| Var::from_tensor(&double(tensor)).unwrap().into_inner());
        let logits = hidden.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let log_p = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        let gold = Tensor::from_slice(&self.gold_ids, (rows, 1), cpu).unwrap();
        let mlm = log_p.gather(&gold, 1).unwrap().squeeze(1).unwrap().neg().unwrap();
        let top = Tensor::from_slice(&self.top_ids, (rows, K), cpu).unwrap();
        let p = double(&Tensor::from_slice(&self.probabilities, (rows, K), cpu).unwrap());
        let kd = (log_p.gather(&top, 1).unwrap() * p).unwrap().sum(1).unwrap().neg().unwrap();
        let lambdas: Vec<f64> = self.has_teacher.iter().map(|has| if *has { lambda } else { 0.0 }).collect();
        let lambdas = Tensor::new(lambdas, cpu).unwrap();
        let weights = double(&Tensor::new(self.weights.as_slice(), cpu).unwrap());
        let position = ((&lambdas * kd).unwrap() + (lambdas.affine(-1.0, 1.0).unwrap() * mlm).unwrap()).unwrap();
        let loss = (position * weights).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        (loss.to_scalar().unwrap(), [&hidden, &weight, &bias].map(|variable| gradients.get(variable).unwrap().clone()))
    }
}

fn assert_close(name: &str, got: &[f32], expected: &Tensor) {
    let expected = expected.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!((got - expected).abs() <= 1e-5 * scale, "{name}[{at}]: {got} for {expected}");
    }
}

#[test]
fn loss_and_gradients_agree_with_autograd_on_the_formula() {
    // 2 × ROWS_MIN + 1 rows of a vocabulary so large that a piece has ROWS_MIN of them.
    for (rows, vocabulary, lambda) in [(1, 7, 0.25), (5, 40, 0.0), (5, 40, 1.0), (33, 600_000, 0.6)] {
        let case = Case::new(rows, vocabulary, 4);
        let (loss, [expected_dh, expected_dw, expected_db]) = case.reference(lambda);
        let (mut dw, mut db) = (vec![0.0; vocabulary * 4], vec![0.0; vocabulary]);
        let (dh, sums) =
            linear_cross_entropy(&case.hidden, &case.weight, &case.bias, &case.targets(), lambda, &mut dw, &mut db)
                .unwrap();
        assert!((sums.loss - loss).abs() <= 1e-5 * loss, "{} for {loss}", sums.loss);
        assert_close("dh", &dh.flatten_all().unwrap().to_vec1().unwrap(), &expected_dh);
        assert_close("dw", &dw, &expected_dw);
        assert_close("db", &db, &expected_db);
    }
}

#[test]
fn gradients_add_to_what_is_there() {
    let case = Case::new(5, 40, 4);
    let run = |dw: &mut [f32], db: &mut [f32]| {
        let targets = case.targets();
        linear_cross_entropy(&case.hidden, &case.weight, &case.bias, &targets, 0.5, dw, db).unwrap();
    };
    let (mut dw, mut db) = (vec![0.0; 160], vec![0.0; 40]);
    run(&mut dw, &mut db);
    let (once_w, once_b) = (dw.clone(), db.clone());
    run(&mut dw, &mut db);
    let double = |once: &[f32]| Tensor::new(once, &Device::Cpu).unwrap().affine(2.0, 0.0).unwrap();
    assert_close("dw", &dw, &double(&once_w));
    assert_close("db", &db, &double(&once_b));
}

#[test]
fn scores_agree_with_the_loss_and_ties_go_to_the_lower_id() {
    let case = Case::new(33, 600_000, 4);
    let scores = score(&case.hidden, &case.weight, &case.bias, &case.gold_ids).unwrap();
    let (mut dw, mut db) = (vec![0.0; 2_400_000], vec![0.0; 600_000]);
    let targets = case.targets();
    let (_, sums) =
        linear_cross_entropy(&case.hidden, &case.weight, &case.bias, &targets, 0.5, &mut dw, &mut db).unwrap();
    assert!((sums.mlm - scores.iter().map(|score| score.loss).sum::<f64>()).abs() < 1e-9);

    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let scores = score(&zeros(&[2, 4]), &zeros(&[3, 4]), &zeros(&[3]), &[0, 1]).unwrap();
    assert_eq!(scores.iter().map(|score| score.correct).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn shapes_and_ids_are_checked() {
    let case = Case::new(5, 40, 4);
    let (mut dw, mut db) = (vec![0.0; 160], vec![0.0; 40]);
    let mut check = |targets: Targets<'_>, message: &str| {
        let result = linear_cross_entropy(&case.hidden, &case.weight, &case.bias, &targets, 0.5, &mut dw, &mut db);
        assert!(result.unwrap_err().to_string().contains(message));
    };
    check(Targets { gold_ids: &[0, 1, 2, 3, 40], ..case.targets() }, "gold label 40");
    check(Targets { top_ids: &[40; 15], ..case.targets() }, "label id 40");
    check(Targets { top_k: 2, ..case.targets() }, "2 labels each");
    check(Targets { weights: &[1.0; 4], ..case.targets() }, "4 weights");
}
