//! First word embeddings of a student that takes them over from its teachers (`[student] init = "teachers"`).
//!
//! A token's row is that of the first teacher that has it, in the order of the log's table, among those with weights. Not the mean over teachers: their
//! coordinates have nothing to do with each other, so a mean of two rows says less than either. Each teacher's rows are centred, and scaled
//! by one factor so that their numbers spread as the initialiser's do. What matters is which words are near which, and that is kept: of a wider teacher the principal
//! components of its own rows are taken ([`principal`]); of a narrower one the row as it is, and the student's other
//! columns stay random, as do the rows of tokens that only teachers without weights have. The decoder's bias is the teacher's, centred: how
//! frequent words are. All other parameters begin as ever.
//!
//! They are made once, when training begins, and kept in the state folder: what a step was follows from log, journal and state folder, though a teacher's folder
//! is gone. A teacher that comes later changes nothing of the student's space, which has moved on by then: its new rows are made from those of their pieces ([`crate::growth`]).

mod principal;

use crate::TrainerError;
use crate::checkpoint::Checkpoints;
use crate::durable;
use crate::growth;
use crate::journal::Journal;
use crate::options::{StudentInit, TrainerOptions};
use crate::resume;
use crate::vocabulary::{SPECIAL, Vocabulary, VocabularyMap};
use candle_core::Device;
use model::{Configuration, Numbers, Parameters, WordEmbeddings};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::io::Write;
use std::path::Path;

const FILE: &str = "initial_words.safetensors";
const ROWS: &str = "rows";
const BIAS: &str = "bias";

/// Makes the first words of training, if it takes any over from teachers, does not have them, and has no checkpoint.
///
/// # Errors
/// When a teacher cannot be read, or the state folder not written.
pub(crate) fn prepare(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    journal: &Journal,
    checkpoints: &Checkpoints,
) -> Result<(), TrainerError> {
    let takes_over = options.student.init == StudentInit::Teachers && options.trunk.is_none();
    if !takes_over || !checkpoints.steps()?.is_empty() {
        return Ok(());
    }
    let size = growth::first_size(journal).unwrap_or(vocabulary.size());
    let path = options.state_dir.join(FILE);
    if path.exists() && read(&path, options.student.embedding_size)?.bias.len() >= size {
        return Ok(());
    }
    let words = options.compute(|| make(options, vocabulary, size))?;
    durable::create_folder(&options.state_dir)?;
    write(&path, &words)
}

/// The parameters with which training begins: `random` ones, with the words of teachers if it has any.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn begin(
    options: &TrainerOptions,
    configuration: &Configuration,
    random: Parameters,
) -> Result<Parameters, TrainerError> {
    if options.student.init == StudentInit::Random {
        return Ok(random);
    }
    let path = options.state_dir.join(FILE);
    let mut words = read(&path, configuration.embedding_size)?;
    let size = configuration.vocabulary_size;
    if words.bias.len() < size {
        return Err(TrainerError::corrupt(&path, format!("it has {} words, expected {size}", words.bias.len())));
    }
    words.bias.truncate(size);
    words.rows.truncate(size * words.width);
    Ok(random.with_words(words, configuration)?)
}

/// The first `size` words of the vocabulary.
fn make(options: &TrainerOptions, vocabulary: &Vocabulary, size: usize) -> Result<WordEmbeddings, TrainerError> {
    let configuration = resume::configuration(options, size)?;
    let random = Parameters::initialise(&configuration, options.seed, &Device::Cpu)?;
    let (rows, bias) = random.decoder();
    let (rows, bias) = (rows.flatten_all()?.to_vec1()?, bias.to_vec1()?);
    let mut words = WordEmbeddings { width: configuration.embedding_size, rows, bias };
    let mut given = vec![false; size];
    // The padding token's row stays 0.
    given[SPECIAL.pad as usize] = true;
    for teacher in options.teachers.iter().filter(|teacher| teacher.labels) {
        let map = vocabulary.maps().iter().find(|map| map.teacher == teacher.name);
        let (Some(map), Some(folder)) = (map, &teacher.folder) else { continue };
        if map.to_student.iter().any(|id| *id as usize >= size) {
            continue; // It came later.
        }
        let own = WordEmbeddings::load(folder)?;
        if own.bias.len() < map.size() {
            let message = format!("teacher `{}` has {} rows for {} words", teacher.name, own.bias.len(), map.size());
            return Err(TrainerError::Configuration(message));
        }
        let taken = take_over(&own, map, configuration.initializer_range, &mut words, &mut given);
        tracing::info!(teacher = teacher.name, taken, width = own.width, "the student begins with words of a teacher");
        store::pulse::beat();
    }
    Ok(words)
}

/// Gives the student the rows of the teacher's words that it has none of; returns how many.
fn take_over(
    own: &WordEmbeddings,
    map: &VocabularyMap,
    spread: f64,
    words: &mut WordEmbeddings,
    given: &mut [bool],
) -> usize {
    let rows = placed(own, map.size(), spread, words.width);
    let columns = rows.len() / map.size().max(1);
    let mean = own.bias[..map.size()].iter().map(|bias| f64::from(*bias)).sum::<f64>() / map.size().max(1) as f64;
    let mut taken = 0;
    for (teacher_id, student_id) in map.to_student.iter().enumerate() {
        let at = *student_id as usize;
        if std::mem::replace(&mut given[at], true) {
            continue;
        }
        let row = &rows[teacher_id * columns..][..columns];
        words.rows[at * words.width..][..columns].copy_from_slice(row);
        words.bias[at] = (f64::from(own.bias[teacher_id]) - mean) as f32;
        taken += 1;
    }
    taken
}

/// The first `count` rows of a teacher, centred, in no more than `width` columns, their numbers with the standard deviation `spread`:
/// `[count, ≤ width]`.
fn placed(own: &WordEmbeddings, count: usize, spread: f64, width: usize) -> Vec<f32> {
    let rows = &own.rows[..count * own.width];
    let mut means = vec![0.0; own.width];
    for row in rows.chunks_exact(own.width) {
        means.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    means.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    let centred = |row: &[f32]| row.iter().zip(&means).map(|(x, mean)| f64::from(*x) - mean).collect::<Vec<f64>>();
    let placed: Vec<Vec<f64>> = if own.width <= width {
        rows.par_chunks_exact(own.width).map(centred).collect()
    } else {
        let axes = principal::axes(rows, &means, width);
        let project = |row: Vec<f64>| axes.iter().map(|axis| principal::dot(axis, &row)).collect();
        rows.par_chunks_exact(own.width).map(|row| project(centred(row))).collect()
    };
    let numbers: usize = placed.iter().map(Vec::len).sum();
    let squares: f64 = placed.iter().flatten().map(|x| x * x).sum();
    let deviation = (squares / numbers.max(1) as f64).sqrt();
    let scale = if deviation > 0.0 { spread / deviation } else { 0.0 };
    placed.iter().flatten().map(|x| (x * scale) as f32).collect()
}

fn write(path: &Path, words: &WordEmbeddings) -> Result<(), TrainerError> {
    let count = words.bias.len();
    let views = [
        (ROWS, Numbers::new(words.rows.as_slice(), vec![count, words.width])),
        (BIAS, Numbers::new(words.bias.as_slice(), vec![count])),
    ];
    let bytes = safetensors::serialize(views, None)
        .map_err(|error| TrainerError::io("write", path)(std::io::Error::other(error)))?;
    durable::replace_with(path, |file| file.write_all(&bytes))
}

fn read(path: &Path, width: usize) -> Result<WordEmbeddings, TrainerError> {
    let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| TrainerError::corrupt(path, error))?;
    let numbers = |name: &str| -> Result<Vec<f32>, TrainerError> {
        let view = tensors.tensor(name).map_err(|error| TrainerError::corrupt(path, error))?;
        let (numbers, rest) = view.data().as_chunks::<4>();
        if view.dtype() != Dtype::F32 || !rest.is_empty() {
            return Err(TrainerError::corrupt(path, format!("`{name}` is not float32")));
        }
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    let words = WordEmbeddings { width, rows: numbers(ROWS)?, bias: numbers(BIAS)? };
    if words.rows.len() != words.bias.len() * width {
        let reason = format!("{} numbers are not {} words of width {width}", words.rows.len(), words.bias.len());
        return Err(TrainerError::corrupt(path, reason));
    }
    Ok(words)
}

#[cfg(test)]
#[path = "initial_tests.rs"]
mod tests;
