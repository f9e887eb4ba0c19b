//! Every parameter of a fresh student learns, plain and factorised, with and without dropout; and what it learns does not
//! depend on the number of threads.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use model::random::Philox;
use model::{Dropout, PackedBatch, Parameters};
use trainer::StudentOptions;
use trainer::loss::Targets;
use trainer::optimiser::{AdamW, Update};
use trainer::student::Student;

const VOCABULARY: usize = 300;

fn student(embedding_size: usize) -> Student {
    student_of(32, embedding_size, VOCABULARY)
}

fn student_of(hidden_size: usize, embedding_size: usize, vocabulary_size: usize) -> Student {
    let options = StudentOptions {
        layers: 2,
        hidden_size,
        heads: 4,
        intermediate_size: 48,
        embedding_size,
        max_sequence_length: 16,
        dropout: 0.1,
        ..StudentOptions::default()
    };
    let configuration = options.configuration(vocabulary_size, 0);
    let parameters = Parameters::initialise(&configuration, 5, &Device::Cpu).unwrap();
    Student::new(&configuration, &parameters).unwrap()
}

fn accumulate(student: &mut Student, dropout: Option<Dropout>) {
    let lengths = [4, 7, 7, 13, 16];
    let tokens: usize = lengths.iter().sum();
    let random = Philox::new(1, "batch", &[]);
    let ids = |count: usize, stream: u64| -> Vec<u32> {
        (0..count).map(|at| 5 + random.below(VOCABULARY as u64 - 5, at as u64, stream) as u32).collect()
    };
    let masked_rows: Vec<u32> = (0..tokens as u32).filter(|row| row % 3 == 1).collect();
    let n = masked_rows.len();
    let batch =
        PackedBatch { token_ids: ids(tokens, 0), lengths: lengths.to_vec(), masked_rows, ..PackedBatch::default() };
    let (gold_ids, top_ids) = (ids(n, 1), ids(2 * n, 2));
    let targets = Targets {
        gold_ids: &gold_ids,
        top_k: 2,
        top_ids: &top_ids,
        probabilities: &[0.75, 0.25].repeat(n),
        tail_masses: &[],
        gold_masses: &[],
        weights: &vec![1.0 / n as f32; n],
        has_teacher: &vec![true; n],
    };
    student.accumulate(&batch, &targets, 0.5, dropout).unwrap();
}

#[test]
fn every_parameter_gets_a_gradient() {
    let dropout = Dropout { stream: Philox::new(1, "dropout", &[]), step: 0, first_row: 0 };
    for (embedding_size, dropout) in [(32, None), (32, Some(dropout)), (12, None), (12, Some(dropout))] {
        let mut student = student(embedding_size);
        accumulate(&mut student, dropout);
        let mut parameters = 0;
        for parameter in student.parameters() {
            assert!(parameter.gradient.iter().all(|x| x.is_finite()), "{}", parameter.name);
            assert!(parameter.gradient.iter().any(|x| *x != 0.0), "{} with {embedding_size}", parameter.name);
            parameters += 1;
        }
        assert_eq!(parameters, student.layout().slots().len());
    }
}

#[test]
fn dropout_differs_from_step_to_step_and_repeats() {
    let stream = Philox::new(1, "dropout", &[]);
    let norm = |step: u64| {
        let mut student = student(32);
        accumulate(&mut student, Some(Dropout { stream, step, first_row: 0 }));
        student.gradient_norm()
    };
    assert_eq!(norm(1), norm(1));
    assert_ne!(norm(1), norm(2));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let trained = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut student = student_of(256, 96, 20_000);
            let mut optimiser = AdamW::new(student.layout().length());
            for step in 0..3 {
                accumulate(&mut student, Some(Dropout { stream: Philox::new(1, "dropout", &[]), step, first_row: 0 }));
                let gradient_scale = 1.0 / student.gradient_norm();
                student.update(&mut optimiser, &Update { learning_rate: 1e-2, weight_decay: 0.1, gradient_scale });
            }
            (student.arena().to_vec(), optimiser)
        })
    };
    let one = trained(1);
    assert!(one.0.iter().all(|x| x.is_finite()));
    assert!(trained(2) == one && trained(3) == one);
}
