//! Where training begins: at the newest checkpoint that still counts, or at the beginning.

use crate::TrainerError;
use crate::checkpoint::{self, Checkpoints, Loaded, Moments, Totals, TrainerState, hexadecimal};
use crate::copy_stream::{CopyStream, StreamOptions, StreamState};
use crate::journal::{Journal, JournalEntry, Rollback, VocabularyGrowth};
use crate::learner::Learner;
use crate::optimiser::AdamW;
use crate::options::TrainerOptions;
use crate::sampler::SamplerOptions;
use crate::state_folder::checkpoints_path;
use crate::student::Student;
use crate::training_copy::CopyOptions;
use crate::vocabulary::{SPECIAL, Vocabulary};
use candle_core::{Device, Tensor};
use model::{Bert, Configuration, Parameters};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Training's state, ready to go on.
pub(crate) struct Resumed {
    pub(crate) learner: Learner,
    pub(crate) state: TrainerState,
    /// Whether it comes from a checkpoint.
    pub(crate) from_checkpoint: bool,
}

/// Restores the newest checkpoint whose step `wanted` accepts and that no later return to an earlier one has made void;
/// without one, training begins, but a release cannot.
pub(crate) fn resume(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    checkpoints: &Checkpoints,
    journal: &mut Journal,
    wanted: impl Fn(u64) -> bool,
) -> Result<Resumed, TrainerError> {
    let rollbacks = rollbacks(journal);
    let loaded = checkpoints.newest(|state| wanted(state.step) && is_valid(state, &rollbacks))?;
    let mut resumed = match loaded {
        Some(loaded) => restore(options, vocabulary, journal, loaded)?,
        None if options.trunk.is_some() => {
            return Err(TrainerError::NoCheckpoint { path: checkpoints_path(&options.state_dir) });
        }
        None => begin(options, vocabulary)?,
    };
    let earlier = usize::try_from(resumed.state.rollbacks).unwrap_or(usize::MAX);
    if earlier > rollbacks.len() {
        let known = rollbacks.len();
        let reason = format!("it has gone back {earlier} times, but the journal knows of {known}; restore the journal");
        return Err(TrainerError::corrupt(&checkpoints.path(resumed.state.step), reason));
    }
    for rollback in &rollbacks[earlier..] {
        resumed.state.stream.left_out.extend(&rollback.left_out);
    }
    resumed.state.rollbacks = rollbacks.len() as u64;
    Ok(resumed)
}

/// Returns to earlier checkpoints so far, in order.
pub(crate) fn rollbacks(journal: &Journal) -> Vec<Rollback> {
    let rollback = |entry: &JournalEntry| match entry {
        JournalEntry::Rollback(rollback) => Some(rollback.clone()),
        _ => None,
    };
    journal.events().iter().filter_map(rollback).collect()
}

/// Times that training went back to the checkpoint after `step` since it last got beyond it: since it went back to a later
/// one.
pub(crate) fn returns_to(rollbacks: &[Rollback], step: u64) -> usize {
    let since = rollbacks.iter().rev().take_while(|rollback| rollback.to_step <= step);
    since.filter(|rollback| rollback.to_step == step).count()
}

/// The stream of training copies from `state` on.
pub(crate) fn stream(options: &TrainerOptions, vocabulary: &Arc<Vocabulary>, state: &StreamState) -> CopyStream {
    let train = &options.train;
    let stream = StreamOptions {
        sampler: SamplerOptions {
            shuffle_examples: train.shuffle_examples,
            alpha: options.alpha,
            max_passes: train.max_passes,
            when_short: train.when_short,
            inputs: options.inputs.clone(),
        },
        copies: CopyOptions {
            copies: train.copies,
            best_by: train.best_by,
            copy_weight: train.copy_weight,
            max_sequence_length: options.student.max_sequence_length,
        },
        labels: options.teachers.iter().map(|teacher| teacher.labels).collect(),
        batch_examples: train.batch_examples,
        micro_batch_tokens: train.micro_batch_tokens,
        kd_target: train.kd_target,
        loss_norm: train.loss_norm,
    };
    CopyStream::new(options.seed, stream, Arc::clone(vocabulary), state.clone())
}

/// The student's configuration over `vocabulary`.
pub(crate) fn configuration(options: &TrainerOptions, vocabulary: &Vocabulary) -> Result<Configuration, TrainerError> {
    let configuration = options.student.configuration(vocabulary.size(), SPECIAL.pad);
    configuration.validate().map_err(|reason| TrainerError::Configuration(format!("[student]: {reason}")))?;
    Ok(configuration)
}

/// Whether a checkpoint lies on the way that training took in the end, going back by `rollbacks`: it must not be later than the target of any return
/// that came after it.
pub(crate) fn is_valid(state: &TrainerState, rollbacks: &[Rollback]) -> bool {
    let earlier = usize::try_from(state.rollbacks).unwrap_or(usize::MAX);
    rollbacks.iter().skip(earlier).all(|rollback| state.step <= rollback.to_step)
}

fn begin(options: &TrainerOptions, vocabulary: &Vocabulary) -> Result<Resumed, TrainerError> {
    let configuration = configuration(options, vocabulary)?;
    let parameters = Parameters::initialise(&configuration, options.seed, &Device::Cpu)?;
    let student = Student::new(&configuration, &parameters)?;
    let optimiser = AdamW::new(student.layout().length());
    let state = TrainerState {
        step: 0,
        evaluated: None,
        updates: 0,
        skipped_in_a_row: 0,
        rollbacks: 0,
        stream: StreamState::default(),
        totals: Totals::default(),
        identity: identity(options),
        vocabulary_size: vocabulary.size(),
        vocabulary_fingerprint: fingerprint(vocabulary, vocabulary.size()),
    };
    Ok(Resumed { learner: Learner::new(student, optimiser, options.seed), state, from_checkpoint: false })
}

fn restore(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    journal: &mut Journal,
    loaded: Loaded,
) -> Result<Resumed, TrainerError> {
    if loaded.state.vocabulary_size < vocabulary.size() {
        check_identity(&loaded.path, &loaded.state, options, vocabulary)?;
        note_growth(journal, &loaded.state, vocabulary)?;
    }
    let (bert, moments, state) = fit(options, vocabulary, loaded)?;
    let student = Student::new(&bert.configuration, &bert.parameters)?;
    let optimiser = checkpoint::optimiser(student.layout(), state.updates, &moments);
    Ok(Resumed { learner: Learner::new(student, optimiser, options.seed), state, from_checkpoint: true })
}

/// A checkpoint under these options: refused if it belongs to others, and grown to the vocabulary's size.
pub(crate) fn fit(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    loaded: Loaded,
) -> Result<(Bert, Vec<Moments>, TrainerState), TrainerError> {
    let Loaded { path, mut state, mut parameters, mut moments, .. } = loaded;
    check_identity(&path, &state, options, vocabulary)?;
    let configuration = configuration(options, vocabulary)?;
    if state.vocabulary_size < vocabulary.size() {
        (parameters, moments) = grow(options, &configuration, &parameters, &moments)?;
        state.vocabulary_size = vocabulary.size();
        state.vocabulary_fingerprint = fingerprint(vocabulary, vocabulary.size());
    }
    Ok((Bert { configuration, parameters }, moments, state))
}

// --- identity ------------------------------------------------------------------------------------------------------

/// What a checkpoint depends on besides the vocabulary: what decides the weights' shapes, and what decides which copy
/// comes next. Everything else may change from one start to the next.
fn identity(options: &TrainerOptions) -> BTreeMap<String, String> {
    let mut identity = BTreeMap::from([
        ("run.seed".to_owned(), options.seed.to_string()),
        ("sampling.alpha".to_owned(), options.alpha.to_string()),
    ]);
    let mut add = |section: &str, options: Value, keys: &[&str]| {
        for key in keys {
            let value = &options[*key];
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            identity.insert(format!("{section}.{key}"), text);
        }
    };
    let student = ["layers", "hidden_size", "heads", "intermediate_size", "embedding_size", "max_sequence_length"];
    add("student", serde_json::to_value(&options.student).unwrap_or_default(), &student);
    let train = ["copies", "best_by", "shuffle_examples"];
    add("train", serde_json::to_value(&options.train).unwrap_or_default(), &train);
    identity
}

fn check_identity(
    path: &Path,
    state: &TrainerState,
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
) -> Result<(), TrainerError> {
    let wanted = identity(options);
    let mut differences = Vec::new();
    for key in state.identity.keys().chain(wanted.keys().filter(|key| !state.identity.contains_key(*key))) {
        let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".to_owned());
        let (stored, new) = (state.identity.get(key), wanted.get(key));
        if stored != new {
            differences.push(format!("{key} was {}, is {}", show(stored), show(new)));
        }
    }
    if state.vocabulary_size > vocabulary.size() {
        let (stored, new) = (state.vocabulary_size, vocabulary.size());
        differences.push(format!("the vocabulary had {stored} tokens, has {new}"));
    } else if fingerprint(vocabulary, state.vocabulary_size) != state.vocabulary_fingerprint {
        differences.push("the vocabulary has other tokens".to_owned());
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainerError::Identity { path: path.to_owned(), differences: differences.join("; ") })
}

/// SHA-256 of the first `count` tokens.
fn fingerprint(vocabulary: &Vocabulary, count: usize) -> String {
    let mut hash = Sha256::new();
    for token in vocabulary.tokens().iter().take(count) {
        hash.update((token.len() as u64).to_le_bytes());
        hash.update(token);
    }
    hexadecimal(&hash.finalize())
}

// --- growth --------------------------------------------------------------------------------------------------------

fn note_growth(journal: &mut Journal, state: &TrainerState, vocabulary: &Vocabulary) -> Result<(), TrainerError> {
    let growth = JournalEntry::VocabularyGrowth(VocabularyGrowth {
        step: state.step,
        from_size: state.vocabulary_size,
        to_size: vocabulary.size(),
        teachers: new_teachers(vocabulary, state.vocabulary_size),
    });
    // It is there already if this start was made before and came to no checkpoint.
    if journal.events().contains(&growth) { Ok(()) } else { journal.append(growth) }
}

/// Names of the teachers that the vocabulary had not seen when it had `size` tokens.
fn new_teachers(vocabulary: &Vocabulary, size: usize) -> Vec<String> {
    let mut tokens = 0;
    let mut names = Vec::new();
    for map in vocabulary.maps() {
        tokens += map.new;
        if tokens > size {
            names.push(map.teacher.clone());
        }
    }
    names
}

/// Parameters and moments for a vocabulary that grew at its end: the first rows are the old ones, new rows are as they
/// would be at the start of training.
fn grow(
    options: &TrainerOptions,
    configuration: &Configuration,
    parameters: &Parameters,
    old: &[Moments],
) -> Result<(Parameters, Vec<Moments>), TrainerError> {
    let fresh = Parameters::initialise(configuration, options.seed, &Device::Cpu)?;
    let mut grown = BTreeMap::new();
    let mut moments = Vec::new();
    for ((name, new), old_moments) in fresh.iter().zip(old) {
        let mut numbers = new.flatten_all()?.to_vec1::<f32>()?;
        let count = numbers.len();
        let Some(old) = parameters.find(name).filter(|old| old.elem_count() <= count) else {
            return Err(TrainerError::Configuration(format!("the checkpoint's parameter `{name}` does not fit")));
        };
        let old = old.flatten_all()?.to_vec1::<f32>()?;
        numbers[..old.len()].copy_from_slice(&old);
        grown.insert(name.to_owned(), Tensor::from_vec(numbers, new.dims(), &Device::Cpu)?);
        debug_assert_eq!(old_moments.name, name, "both are in the order of names");
        let mut old_moments: Moments = old_moments.clone();
        old_moments.first.resize(count, 0.0);
        old_moments.second.resize(count, 0.0);
        moments.push(old_moments);
    }
    Ok((Parameters::from_map(grown, configuration)?, moments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_are_counted_since_training_got_further() {
        let rollback = |to_step| Rollback { from_step: to_step + 3, to_step, left_out: Vec::new() };
        let rollbacks = [0, 20, 10, 0, 20, 10, 10, 0].map(rollback);
        assert_eq!([0, 5, 10, 20, 30].map(|step| returns_to(&rollbacks, step)), [1, 0, 2, 2, 0]);
        assert_eq!(returns_to(&rollbacks[..5], 10), 0, "it has got beyond 10");
        assert_eq!(returns_to(&[], 0), 0);
    }
}
