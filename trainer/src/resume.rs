//! Where training begins: at the newest checkpoint that still counts, or at the beginning.

use crate::TrainerError;
use crate::checkpoint::{self, Checkpoints, Loaded, Moments, Totals, TrainerState, hexadecimal};
use crate::copy_stream::{CopyStream, StreamOptions, StreamState};
use crate::growth;
use crate::initial;
use crate::journal::{Journal, JournalEntry, Rollback};
use crate::learner::Learner;
use crate::optimiser::AdamW;
use crate::options::{StudentInit, TrainerOptions};
use crate::sampler::SamplerOptions;
use crate::state_folder::checkpoints_path;
use crate::student::Student;
use crate::target::TargetSchedule;
use crate::training_copy::CopyOptions;
use crate::vocabulary::{SPECIAL, Vocabulary};
use candle_core::Device;
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
    journal: &Journal,
    wanted: impl Fn(u64) -> bool,
) -> Result<Resumed, TrainerError> {
    let rollbacks = rollbacks(journal);
    let loaded = checkpoints.newest(|state| wanted(state.step) && is_valid(state, &rollbacks))?;
    let mut resumed = match loaded {
        Some(loaded) => restore(options, vocabulary, loaded, journal.last_settings().is_none())?,
        None if options.trunk.is_some() => {
            return Err(TrainerError::NoCheckpoint { path: checkpoints_path(&options.state_dir) });
        }
        None => begin(options, vocabulary, growth::first_size(journal))?,
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
    if options.trunk.is_some() && resumed.state.step == options.first_step() {
        // The trunk's, to whose checkpoints before this one a release cannot go back.
        resumed.state.skipped_in_a_row = 0;
    }
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
    let labels = options.teachers.iter().map(|teacher| teacher.labels).collect();
    stream_of(options, labels, vocabulary, state)
}

/// The same for teachers of which `labels` says whether they label, by index into the log's table.
pub(crate) fn stream_of(
    options: &TrainerOptions,
    labels: Vec<bool>,
    vocabulary: &Arc<Vocabulary>,
    state: &StreamState,
) -> CopyStream {
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
        labels,
        batch_examples: train.batch_examples,
        micro_batch_tokens: train.micro_batch_tokens,
        targets: TargetSchedule::of(train),
        loss_norm: train.loss_norm,
    };
    CopyStream::new(options.seed, stream, Arc::clone(vocabulary), state.clone())
}

/// The student's configuration over the first `size` tokens of the vocabulary.
pub(crate) fn configuration(options: &TrainerOptions, size: usize) -> Result<Configuration, TrainerError> {
    let configuration = options.student.configuration(size, SPECIAL.pad);
    configuration.validate().map_err(|reason| TrainerError::Configuration(format!("[student]: {reason}")))?;
    Ok(configuration)
}

/// Whether a checkpoint lies on the way that training took in the end, going back by `rollbacks`: it must not be later than the target of any return
/// that came after it.
pub(crate) fn is_valid(state: &TrainerState, rollbacks: &[Rollback]) -> bool {
    let earlier = usize::try_from(state.rollbacks).unwrap_or(usize::MAX);
    rollbacks.iter().skip(earlier).all(|rollback| state.step <= rollback.to_step)
}

/// Training begins with the first `size` tokens of the vocabulary; `None`: with all of them.
pub(crate) fn begin(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    size: Option<usize>,
) -> Result<Resumed, TrainerError> {
    let size = size.unwrap_or(vocabulary.size()).min(vocabulary.size());
    let configuration = configuration(options, size)?;
    let random = Parameters::initialise(&configuration, options.seed, &Device::Cpu)?;
    let parameters = initial::begin(options, &configuration, random)?;
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
        vocabulary_size: size,
        vocabulary_fingerprint: fingerprint(vocabulary, size),
    };
    Ok(Resumed { learner: Learner::new(student, optimiser, options.seed), state, from_checkpoint: false })
}

/// Training's state as a checkpoint has it. With `settings_unknown` the journal does not say which settings held.
pub(crate) fn restore(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    loaded: Loaded,
    settings_unknown: bool,
) -> Result<Resumed, TrainerError> {
    if settings_unknown {
        check_settings(&loaded.path, &loaded.state, options)?;
    }
    let (bert, moments, state) = fit(options, vocabulary, loaded)?;
    let student = Student::new(&bert.configuration, &bert.parameters)?;
    let optimiser = checkpoint::optimiser(student.layout(), state.updates, &moments);
    Ok(Resumed { learner: Learner::new(student, optimiser, options.seed), state, from_checkpoint: true })
}

/// A checkpoint under these options, with as many tokens as it has: refused if it belongs to others.
pub(crate) fn fit(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    loaded: Loaded,
) -> Result<(Bert, Vec<Moments>, TrainerState), TrainerError> {
    let Loaded { path, mut state, parameters, moments, .. } = loaded;
    check_identity(&path, &state, options, vocabulary)?;
    // From now on it is known.
    for (key, value) in identity(options) {
        state.identity.entry(key).or_insert(value);
    }
    let configuration = configuration(options, state.vocabulary_size)?;
    Ok((Bert { configuration, parameters }, moments, state))
}

/// Gives training that was resumed the first `size` tokens of the vocabulary: more than it has.
pub(crate) fn grow(
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
    size: usize,
    learner: &mut Learner,
    state: &mut TrainerState,
) -> Result<(), TrainerError> {
    let configuration = configuration(options, size)?;
    let on = learner.on();
    learner.settle()?;
    let grown = growth::grow(&learner.student, &learner.optimiser, vocabulary, &configuration)?;
    learner.replace(grown);
    on.iter().try_for_each(|on| learner.place(on))?;
    state.vocabulary_size = size;
    state.vocabulary_fingerprint = fingerprint(vocabulary, size);
    Ok(())
}

// --- identity ------------------------------------------------------------------------------------------------------

/// Keys that a checkpoint depended on before the journal said which settings held when.
const SETTINGS: [&str; 4] = ["sampling.alpha", "train.copies", "train.best_by", "train.shuffle_examples"];

/// What a run keeps besides the vocabulary: the seed, the student's shape and dropout, and which teachers label. Settings are in the
/// journal; everything else may change from one start to the next.
fn identity(options: &TrainerOptions) -> BTreeMap<String, String> {
    let student_values = serde_json::to_value(&options.student).unwrap_or_default();
    let keys = [
        "layers",
        "hidden_size",
        "heads",
        "intermediate_size",
        "embedding_size",
        "max_sequence_length",
        "dropout",
        INITIALIZER_RANGE,
    ];
    let student = keys.into_iter().map(|key| (format!("student.{key}"), shown(&student_values[key])));
    let labels = options
        .teachers
        .iter()
        .map(|teacher| (format!("{TEACHER}{}].labels", teacher.name), teacher.labels.to_string()));
    let init = options.student.init;
    // A setting that came later is there if it is used.
    let init = (init != StudentInit::Random).then(|| ("student.init".to_owned(), shown(&student_values["init"])));
    student.chain(init).chain(labels).chain([("run.seed".to_owned(), options.seed.to_string())]).collect()
}

const TEACHER: &str = "teacher[";
const INITIALIZER_RANGE: &str = "initializer_range";
const INITIALIZER_RANGE_KEY: &str = "student.initializer_range";
/// What it was before there was a key for it.
const INITIALIZER_RANGE_BEFORE: &str = "0.02";

/// Whether a key is compared only where both sides have it: checkpoints of earlier versions do not, teachers are added, and who only looks
/// at a run need not know them.
fn may_lack(key: &str) -> bool {
    key == "student.dropout" || key.starts_with(TEACHER)
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A journal without settings goes with a checkpoint that has those which decide what the windows before it were; they must be the same.
fn check_settings(path: &Path, state: &TrainerState, options: &TrainerOptions) -> Result<(), TrainerError> {
    let train = serde_json::to_value(&options.train).unwrap_or_default();
    let wanted = SETTINGS.map(|key| match key.strip_prefix("train.") {
        Some(field) => (key, shown(&train[field])),
        None => (key, options.alpha.to_string()),
    });
    let differences: Vec<String> = wanted
        .iter()
        .filter_map(|(key, new)| {
            let stored = state.identity.get(*key).filter(|stored| *stored != new)?;
            Some(format!("{key} was {stored}, is {new}"))
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainerError::Identity { path: path.to_owned(), differences: differences.join("; ") })
}

/// Refuses a checkpoint that belongs to other options.
pub(crate) fn check_identity(
    path: &Path,
    state: &TrainerState,
    options: &TrainerOptions,
    vocabulary: &Vocabulary,
) -> Result<(), TrainerError> {
    let wanted = identity(options);
    let mut differences = Vec::new();
    let stored = state.identity.keys().filter(|key| !SETTINGS.contains(&key.as_str()));
    for key in stored.chain(wanted.keys().filter(|key| !state.identity.contains_key(*key))) {
        let show = |value: Option<&str>| value.unwrap_or("unset").to_owned();
        let before = (key == INITIALIZER_RANGE_KEY).then_some(INITIALIZER_RANGE_BEFORE);
        let stored = state.identity.get(key).map(String::as_str).or(before);
        let new = wanted.get(key).map(String::as_str);
        if (stored.is_none() || new.is_none()) && may_lack(key) {
            continue;
        }
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
