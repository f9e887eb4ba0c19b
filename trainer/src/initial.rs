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
//! is gone. With them is kept what they were made from ([`Origin`]): until the first checkpoint they are made anew if that is something else now. They
//! come from the weights that labelled the log, and from no others. A teacher that comes later changes nothing of the student's space, which has moved on by then: its new rows are made from those of their pieces ([`crate::growth`]).

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
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use store::Identity;

const FILE: &str = "initial_words.safetensors";
const ROWS: &str = "rows";
const BIAS: &str = "bias";
/// Key of the file's metadata.
const ORIGIN: &str = "origin";

/// What first words are made from: two that are equal give the same words.
#[derive(Serialize)]
struct Origin<'a> {
    /// Seed of the rows that no teacher gives.
    seed: u64,
    /// Numbers in a row.
    width: usize,
    /// Standard deviation of the numbers.
    spread: f64,
    /// Those that give rows, in the order of the log's table.
    teachers: Vec<Source<'a>>,
}

/// A teacher that gives rows.
#[derive(Serialize)]
struct Source<'a> {
    name: &'a str,
    weights_fingerprint: String,
    #[serde(skip)]
    folder: &'a Path,
    #[serde(skip)]
    map: &'a VocabularyMap,
}

/// Makes the first words of training, if it takes any over from teachers, has none of the same origin, and has no checkpoint.
///
/// # Errors
/// When a teacher cannot be read or has other weights than those that labelled `log`, or the state folder cannot be written.
pub(crate) fn prepare(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    log: &Identity,
    journal: &Journal,
    checkpoints: &Checkpoints,
) -> Result<(), TrainerError> {
    let takes_over = options.student.init == StudentInit::Teachers && options.trunk.is_none();
    if !takes_over || !checkpoints.steps()?.is_empty() {
        return Ok(());
    }
    let size = growth::first_size(journal).unwrap_or(vocabulary.size());
    let configuration = resume::configuration(options, size)?;
    let origin = Origin::of(options, vocabulary, log, &configuration)?;
    let path = options.state_dir.join(FILE);
    if path.exists() && is_of(&path, &origin, size)? {
        return Ok(());
    }
    let words = options.compute(|| make(&configuration, &origin))?;
    durable::create_folder(&options.state_dir)?;
    write(&path, &words, &origin)
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

impl<'a> Origin<'a> {
    /// That of the words of a student of this configuration.
    fn of(
        options: &'a TrainerOptions,
        vocabulary: &'a Vocabulary,
        log: &Identity,
        configuration: &Configuration,
    ) -> Result<Self, TrainerError> {
        let mut teachers = Vec::new();
        for teacher in options.teachers.iter().filter(|teacher| teacher.labels) {
            let map = vocabulary.maps().iter().find(|map| map.teacher == teacher.name);
            let (Some(map), Some(folder)) = (map, &teacher.folder) else { continue };
            if map.to_student.iter().any(|id| *id as usize >= configuration.vocabulary_size) {
                continue; // It came later.
            }
            let logged = log.teachers.iter().find(|entry| entry.name == teacher.name);
            let logged = logged.map(|entry| &entry.weights_fingerprint).filter(|fingerprint| !fingerprint.is_empty());
            let weights_fingerprint = match logged {
                Some(fingerprint) => fingerprint.clone(),
                None => model::fingerprint_weights(folder)?,
            };
            teachers.push(Source { name: &teacher.name, weights_fingerprint, folder, map });
        }
        let (width, spread) = (configuration.embedding_size, configuration.initializer_range);
        Ok(Self { seed: options.seed, width, spread, teachers })
    }

    fn text(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl Source<'_> {
    /// The teacher's own words.
    fn load(&self) -> Result<WordEmbeddings, TrainerError> {
        let own = WordEmbeddings::load(self.folder)?;
        if own.bias.len() < self.map.size() {
            let message = format!("teacher `{}` has {} rows for {} words", self.name, own.bias.len(), self.map.size());
            return Err(TrainerError::Configuration(message));
        }
        if model::fingerprint_weights(self.folder)? != self.weights_fingerprint {
            let message = format!(
                "teacher `{}`: the weights in {} are not those that labelled the log; set its path to the folder that has them, or \
                 student.init = \"random\"",
                self.name,
                self.folder.display()
            );
            return Err(TrainerError::Configuration(message));
        }
        Ok(own)
    }
}

/// As many words as the student of this configuration has.
fn make(configuration: &Configuration, origin: &Origin<'_>) -> Result<WordEmbeddings, TrainerError> {
    let random = Parameters::initialise(configuration, origin.seed, &Device::Cpu)?;
    let (rows, bias) = random.decoder();
    let (rows, bias) = (rows.flatten_all()?.to_vec1()?, bias.to_vec1()?);
    let mut words = WordEmbeddings { width: origin.width, rows, bias };
    let mut given = vec![false; configuration.vocabulary_size];
    // The padding token's row stays 0.
    given[SPECIAL.pad as usize] = true;
    for teacher in &origin.teachers {
        let own = teacher.load()?;
        let taken = take_over(&own, teacher.map, origin.spread, &mut words, &mut given);
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

fn write(path: &Path, words: &WordEmbeddings, origin: &Origin<'_>) -> Result<(), TrainerError> {
    let count = words.bias.len();
    let views = [
        (ROWS, Numbers::new(words.rows.as_slice(), vec![count, words.width])),
        (BIAS, Numbers::new(words.bias.as_slice(), vec![count])),
    ];
    let metadata = HashMap::from([(ORIGIN.to_owned(), origin.text())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| TrainerError::io("write", path)(std::io::Error::other(error)))?;
    durable::replace_with(path, |file| file.write_all(&bytes))
}

/// Whether the words at `path` are at least `size`, and were made from `origin`.
fn is_of(path: &Path, origin: &Origin<'_>, size: usize) -> Result<bool, TrainerError> {
    let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| TrainerError::corrupt(path, error))?;
    let made_from = header.metadata().as_ref().and_then(|metadata| metadata.get(ORIGIN));
    let same = made_from.is_some_and(|made_from| *made_from == origin.text());
    Ok(same && parse(path, &bytes, origin.width)?.bias.len() >= size)
}

fn read(path: &Path, width: usize) -> Result<WordEmbeddings, TrainerError> {
    parse(path, &fs::read(path).map_err(TrainerError::io("read", path))?, width)
}

fn parse(path: &Path, bytes: &[u8], width: usize) -> Result<WordEmbeddings, TrainerError> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| TrainerError::corrupt(path, error))?;
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
