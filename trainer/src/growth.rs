//! Growth of the vocabulary, at its end, when a teacher is added: from which step on the student has how many tokens, and what
//! new rows begin with.
//!
//! The journal says after which step the student grew, before any step is made with more tokens. Training that goes on from an
//! earlier checkpoint, or begins anew, makes the steps up to there with the tokens of then, and grows at the same place: so
//! log, journal and seed determine every step across a growth too. Records with copies of a new teacher lie behind what the
//! windows before its growth saw of the log.
//!
//! The row of a new token in the embedding, and its number in the decoder's bias, begin as the mean of those of its pieces: the
//! tokens into which the union of before would cut it ([`Vocabulary::pieces`]; Gee et al., "Fast Vocabulary Transfer for
//! Language Model Compression", EMNLP 2022). A token that cannot be cut so begins as the mean of all ordinary tokens: that
//! changes the distribution over the others least (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models",
//! 2021). Its moments begin at 0. All other parameters and moments stay what they are.

use crate::TrainerError;
use crate::checkpoint::TrainerState;
use crate::journal::{Journal, JournalEntry, VocabularyGrowth};
use crate::optimiser::AdamW;
use crate::student::Student;
use crate::vocabulary::{SPECIAL_COUNT, Vocabulary};
use candle_core::{Device, Tensor};
use model::{Configuration, Layout, Parameters};
use std::collections::BTreeMap;

/// Tokens with which training begins; `None`: the vocabulary has never grown.
pub(crate) fn first_size(journal: &Journal) -> Option<usize> {
    growths(journal).map(|growth| growth.from_size).next()
}

/// Tokens that the student has after `step` steps; `None`: the vocabulary has not grown by then.
pub(crate) fn size_after(journal: &Journal, step: u64) -> Option<usize> {
    growths(journal).filter(|growth| growth.step <= step).map(|growth| growth.to_size).max()
}

/// Notes in the journal that the student is to have all tokens of `vocabulary`, unless it says so: from `state` on, or from
/// the latest growth that it knows, if that is still to come.
pub(crate) fn note(journal: &mut Journal, state: &TrainerState, vocabulary: &Vocabulary) -> Result<(), TrainerError> {
    let known = growths(journal).map(|growth| growth.to_size).max().unwrap_or(0).max(state.vocabulary_size);
    if vocabulary.size() <= known {
        return Ok(());
    }
    let step = growths(journal).map(|growth| growth.step).max().unwrap_or(0).max(state.step);
    let (to_size, teachers) = (vocabulary.size(), new_teachers(vocabulary, known));
    tracing::info!(step, from_size = known, to_size, ?teachers, "the vocabulary grows at its end");
    let growth = VocabularyGrowth { step, from_size: known, to_size, teachers };
    journal.append(JournalEntry::VocabularyGrowth(growth))
}

/// `parameters` over the first tokens of `vocabulary`, and new rows behind them: as many as `configuration` has.
///
/// # Errors
/// When the parameters are not those of a smaller student of this shape.
pub(crate) fn grow_parameters(
    parameters: &Parameters,
    vocabulary: &Vocabulary,
    configuration: &Configuration,
) -> Result<Parameters, TrainerError> {
    let mut grown = BTreeMap::new();
    for (name, shape) in Parameters::expected(configuration) {
        let unfit = || TrainerError::Configuration(format!("the checkpoint's parameter `{name}` does not fit"));
        let mut numbers = parameters.find(&name).ok_or_else(unfit)?.flatten_all()?.to_vec1::<f32>()?;
        let count: usize = shape.iter().product();
        if numbers.len() != count {
            let width = shape[1..].iter().product();
            if shape[0] != configuration.vocabulary_size || numbers.len() > count || numbers.len() % width != 0 {
                return Err(unfit());
            }
            grow_rows(&mut numbers, width, vocabulary, configuration.vocabulary_size);
        }
        grown.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu)?);
    }
    Ok(Parameters::from_map(grown, configuration)?)
}

/// A student and its optimiser, as large as `configuration`.
///
/// # Errors
/// As [`grow_parameters`].
pub(crate) fn grow(
    student: &Student,
    optimiser: &AdamW,
    vocabulary: &Vocabulary,
    configuration: &Configuration,
) -> Result<(Student, AdamW), TrainerError> {
    let parameters = grow_parameters(&student.to_bert()?.parameters, vocabulary, configuration)?;
    let grown = Student::new(configuration, &parameters)?;
    let mut moments = AdamW::new(grown.layout().length());
    moments.updates = optimiser.updates;
    let layouts = (student.layout(), grown.layout());
    copy_arena(layouts, &optimiser.first, &mut moments.first);
    copy_arena(layouts, &optimiser.second, &mut moments.second);
    Ok((grown, moments))
}

fn growths(journal: &Journal) -> impl Iterator<Item = &VocabularyGrowth> {
    journal.events().iter().filter_map(|entry| match entry {
        JournalEntry::VocabularyGrowth(growth) => Some(growth),
        _ => None,
    })
}

/// Appends the rows of the tokens that come next, up to `size`.
fn grow_rows(numbers: &mut Vec<f32>, width: usize, vocabulary: &Vocabulary, size: usize) {
    let known = numbers.len() / width;
    let ordinary: Vec<u32> = (SPECIAL_COUNT.min(known.saturating_sub(1))..known).map(|id| id as u32).collect();
    let fallback = mean(numbers, width, &ordinary);
    for id in known..size {
        let row = match vocabulary.pieces(id, known) {
            Some(pieces) => mean(numbers, width, &pieces),
            None => fallback.clone(),
        };
        numbers.extend(row);
    }
}

/// The mean of rows, summed in double precision and in the order of `ids`.
fn mean(numbers: &[f32], width: usize, ids: &[u32]) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    for id in ids {
        let row = &numbers[*id as usize * width..][..width];
        sums.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number));
    }
    let count = ids.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Copies each parameter's numbers from an arena of the first layout to the beginning of its place in one of the second.
fn copy_arena(layouts: (&Layout, &Layout), from: &[f32], to: &mut [f32]) {
    for slot in layouts.0.slots() {
        if let Some(place) = layouts.1.slots().iter().find(|place| place.name == slot.name) {
            to[place.range.clone()][..slot.range.len()].copy_from_slice(&from[slot.range.clone()]);
        }
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::options::StudentOptions;
    use crate::vocabulary::{SPECIAL, TeacherTokens};
    use model::{Normalisation, SpecialTokens};

    fn vocabulary(teachers: &[&[&str]]) -> Vocabulary {
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        let tokens: Vec<Vec<String>> = teachers
            .iter()
            .map(|words| special.iter().chain(words.iter()).map(|token| (*token).to_owned()).collect())
            .collect();
        let normalisation = Normalisation { lowercase: false, strip_accents: None, handle_chinese_chars: true };
        let teachers: Vec<TeacherTokens<'_>> = tokens
            .iter()
            .map(|tokens| TeacherTokens {
                name: "teacher",
                tokens,
                special: SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 },
                normalisation,
                fingerprint: "",
            })
            .collect();
        Vocabulary::union(&teachers).unwrap()
    }

    #[test]
    fn new_rows_are_means_and_all_else_stays() {
        let vocabulary = vocabulary(&[&["ha", "##us", "x"], &["haus", "y", "x"]]);
        let (old_size, size) = (8, 10);
        let student = StudentOptions { layers: 1, hidden_size: 4, heads: 1, ..StudentOptions::default() };
        for embedding_size in [4, 2] {
            let shape = StudentOptions { embedding_size, ..student.clone() };
            let (small, large) = (shape.configuration(old_size, SPECIAL.pad), shape.configuration(size, SPECIAL.pad));
            let parameters = Parameters::initialise(&small, 3, &Device::Cpu).unwrap();
            let before = Student::new(&small, &parameters).unwrap();
            let mut optimiser = AdamW::new(before.layout().length());
            optimiser.updates = 7;
            optimiser.first.iter_mut().zip(1..).for_each(|(number, at)| *number = at as f32);
            optimiser.second.iter_mut().zip(1..).for_each(|(number, at)| *number = -at as f32);
            let (after, moments) = grow(&before, &optimiser, &vocabulary, &large).unwrap();
            assert_eq!(moments.updates, 7);
            let arenas = [
                (before.arena(), after.arena(), false),
                (&optimiser.first[..], &moments.first[..], true),
                (&optimiser.second[..], &moments.second[..], true),
            ];
            for (old, new, begins_at_0) in arenas {
                for (was, is) in before.layout().slots().iter().zip(after.layout().slots()) {
                    let (kept, grown) = (&old[was.range.clone()], &new[is.range.clone()]);
                    assert_eq!(&grown[..kept.len()], kept, "{}", is.name);
                    let width = is.shape[1..].iter().product::<usize>();
                    if grown.len() == kept.len() {
                        continue;
                    }
                    assert_eq!(grown.len(), size * width);
                    let mean = |rows: &[usize], at: usize| {
                        rows.iter().map(|row| f64::from(kept[row * width + at])).sum::<f64>() / rows.len() as f64
                    };
                    for at in 0..width {
                        // `haus` is `ha` and `##us`; `y` cannot be spelt.
                        let expected = if begins_at_0 { [0.0; 2] } else { [mean(&[5, 6], at), mean(&[5, 6, 7], at)] };
                        let found = [old_size, old_size + 1].map(|row| grown[row * width + at]);
                        assert_eq!(found, expected.map(|number| number as f32), "{}", is.name);
                    }
                }
            }
        }
    }
}
