//! Tests of [`super`].

#![allow(clippy::unwrap_used)]

use super::*;
use crate::vocabulary::Normalised;
use model::Normalisation;
use model::random::Philox;

const WORDS: usize = 50;

fn teacher(width: usize, seed: u64) -> WordEmbeddings {
    let stream = Philox::new(seed, "test", &[]);
    // One more row than words, as padding has; columns of different spread around different means.
    let number = |row: u64, at: u64| (stream.normal(row, at) * (at + 1) as f64 + at as f64) as f32;
    let rows = (0..=WORDS as u64).flat_map(|row| (0..width as u64).map(move |at| number(row, at))).collect();
    WordEmbeddings { width, rows, bias: (0..=WORDS).map(|at| at as f32 - 3.0).collect() }
}

fn map(to_student: Vec<u32>) -> VocabularyMap {
    let normalisation = Normalisation { lowercase: false, strip_accents: None, handle_chinese_chars: true };
    VocabularyMap {
        teacher: "a".to_owned(),
        fingerprint: String::new(),
        normalisation: Normalised::from(normalisation),
        new: 0,
        to_student,
    }
}

fn deviation(rows: &[f32]) -> f64 {
    let squares: f64 = rows.iter().map(|x| f64::from(*x).powi(2)).sum();
    (squares / rows.len() as f64).sqrt()
}

/// Of all pairs of words, the scalar products of their centred rows.
fn products(rows: &[f32], width: usize) -> Vec<f64> {
    let mean = |at: usize| rows.iter().skip(at).step_by(width).map(|x| f64::from(*x)).sum::<f64>() / WORDS as f64;
    let means: Vec<f64> = (0..width).map(mean).collect();
    let row = |at: usize| (0..width).map(|i| f64::from(rows[at * width + i]) - means[i]).collect::<Vec<f64>>();
    (0..WORDS)
        .flat_map(|one| (0..one).map(move |other| (one, other)))
        .map(|(one, other)| principal::dot(&row(one), &row(other)))
        .collect()
}

fn correlation(one: &[f64], other: &[f64]) -> f64 {
    principal::dot(one, other) / (principal::dot(one, one) * principal::dot(other, other)).sqrt()
}

#[test]
fn rows_spread_as_the_initialiser_does_and_keep_who_is_near_whom() {
    for (own_width, width, columns, least) in
        [(6, 6, 6, 1.0 - 1e-9), (6, 9, 6, 1.0 - 1e-9), (9, 6, 6, 0.95), (9, 8, 8, 0.999)]
    {
        let own = teacher(own_width, 1);
        let rows = placed(&own, WORDS, 0.02, width);
        assert_eq!(rows.len(), WORDS * columns);
        assert!((deviation(&rows) - 0.02).abs() < 1e-8, "{}", deviation(&rows));
        let found = correlation(&products(&own.rows[..WORDS * own_width], own_width), &products(&rows, columns));
        assert!(found >= least, "{own_width} to {width}: {found}");
    }
    let flat = WordEmbeddings { width: 2, rows: vec![0.5; 2 * WORDS], bias: vec![0.0; WORDS] };
    assert_eq!(placed(&flat, WORDS, 0.02, 2), vec![0.0; 2 * WORDS]);
}

#[test]
fn a_token_has_the_row_of_the_first_teacher_that_has_it() {
    let size = WORDS + 20;
    let mut words = WordEmbeddings { width: 7, rows: vec![9.0; 7 * size], bias: vec![0.0; size] };
    let mut given = vec![false; size];
    let (first, second) = (teacher(5, 1), teacher(5, 2));
    let ids = |from: u32| (from..from + WORDS as u32).collect::<Vec<u32>>();
    assert_eq!(take_over(&first, &map(ids(0)), 0.02, &mut words, &mut given), WORDS);
    assert_eq!(take_over(&second, &map(ids(10)), 0.02, &mut words, &mut given), 10);
    let (of_first, of_second) = (placed(&first, WORDS, 0.02, 7), placed(&second, WORDS, 0.02, 7));
    for at in 0..size {
        let row = &words.rows[at * 7..][..7];
        let (expected, bias) = match at {
            0..WORDS => (&of_first[at * 5..][..5], at as f32 - 24.5),
            _ if at < WORDS + 10 => (&of_second[(at - 10) * 5..][..5], (at - 10) as f32 - 24.5),
            _ => (&[9.0; 5][..], 0.0),
        };
        assert_eq!((&row[..5], words.bias[at]), (expected, bias), "token {at}");
        assert_eq!(row[5..], [9.0; 2], "columns that the teacher lacks stay random");
    }
}

#[test]
fn words_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let words = teacher(5, 3);
    let origin = |seed| Origin { seed, width: 5, spread: 0.02, teachers: Vec::new() };
    write(&path, &words, &origin(1)).unwrap();
    assert_eq!(read(&path, 5).unwrap(), words);
    let is_of = |seed, size| is_of(&path, &origin(seed), size).unwrap();
    assert_eq!([is_of(1, WORDS + 1), is_of(1, WORDS + 2), is_of(2, 1)], [true, false, false]);
    assert!(read(&path, 4).unwrap_err().to_string().contains("of width 4"));
    fs::write(&path, b"no tensors").unwrap();
    assert!(read(&path, 5).unwrap_err().to_string().contains(FILE));
}
