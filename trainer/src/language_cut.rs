//! A student cut to some of its languages: exactly the tokens of the teachers of these languages keep their rows.
//!
//! Each of these teachers' tokenizers, in the ids of the cut student, cuts a text as it did before, so a model that is fine-tuned sees what
//! the full student would see. Hidden states are the full student's, and so are the logits of the tokens that are kept; only the
//! softmax is over fewer tokens. Ids keep their order, and the special tokens theirs.
//!
//! What is cut are the files that go with every export ([`crate::tokenizer_export`]), so nothing else has to be known of a run. The
//! tokenizer of the folder itself is the teacher's where the languages have one teacher; of several, their union's, which lower-cases
//! text if they all do, whatever the others of the run did.

use crate::tokenizer_export::{
    KnownTeacher, known_teachers, normalisation_keys, normalizer, union_normalisation, write_known_teachers,
};
use crate::vocabulary::{Normalised, SPECIAL_COUNT};
use crate::{TrainerError, durable};
use candle_core::{Device, Tensor};
use model::{Bert, Configuration, Parameters, Tokenizer};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TOKENIZER: &str = "tokenizer.json";
const WORDS: &str = "vocab.txt";
const SETTINGS: &str = "tokenizer_config.json";
/// What goes with a tokenizer and never changes.
const UNCHANGED: &str = "special_tokens_map.json";

/// Which rows of a student are kept, and whose they are.
#[derive(Debug)]
pub(crate) struct LanguageCut {
    /// Ids in the full student, ascending, the special tokens first; the id in the cut student is the place.
    rows: Vec<u32>,
    teachers: Vec<KnownTeacher>,
}

impl LanguageCut {
    /// The cut to `languages` of the student whose tokenizers are in `tokenizers`.
    ///
    /// # Errors
    /// [`TrainerError::Configuration`] when no teacher has one of the languages; failures to read the tokenizers.
    pub(crate) fn new(tokenizers: &Path, languages: &[String]) -> Result<Self, TrainerError> {
        let all = known_teachers(tokenizers)?;
        let known: BTreeSet<&String> = all.iter().flat_map(|teacher| &teacher.languages).collect();
        let unknown: BTreeSet<&str> =
            languages.iter().filter(|language| !known.contains(language)).map(String::as_str).collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
            return Err(TrainerError::Configuration(format!(
                "no teacher of the student has language {}; there are: {}",
                unknown.into_iter().map(|language| format!("`{language}`")).collect::<Vec<_>>().join(", "),
                known.join(", ")
            )));
        }
        let is_wanted = |teacher: &KnownTeacher| teacher.languages.iter().any(|language| languages.contains(language));
        let teachers: Vec<KnownTeacher> = all.into_iter().filter(is_wanted).collect();
        let mut rows: BTreeSet<u32> = (0..SPECIAL_COUNT as u32).collect();
        for teacher in &teachers {
            let path = tokenizers.join(&teacher.tokenizer).join(TOKENIZER);
            let json = read_json(&path)?;
            let vocabulary = json["model"]["vocab"].as_object().into_iter().flatten().map(|(_, id)| id);
            let added = json["added_tokens"].as_array().into_iter().flatten().map(|token| &token["id"]);
            for id in vocabulary.chain(added) {
                rows.insert(
                    number(id).ok_or_else(|| TrainerError::corrupt(&path, format!("a token has the id {id}")))?,
                );
            }
        }
        Ok(Self { rows: rows.into_iter().collect(), teachers })
    }

    /// The student with the kept rows alone.
    ///
    /// # Errors
    /// When it is not the tokenizers' student.
    pub(crate) fn student(&self, bert: &Bert) -> Result<Bert, TrainerError> {
        let full = &bert.configuration;
        if self.rows.last().is_some_and(|last| *last as usize >= full.vocabulary_size) {
            return Err(TrainerError::Configuration(format!(
                "the student has {} tokens, fewer than its tokenizers: the newest checkpoint is older than the vocabulary; write a \
                 checkpoint first",
                full.vocabulary_size
            )));
        }
        let configuration = Configuration { vocabulary_size: self.rows.len(), ..full.clone() };
        let rows = Tensor::new(self.rows.as_slice(), &Device::Cpu)?;
        let shapes = Parameters::expected(full).into_iter().zip(Parameters::expected(&configuration));
        let cut = shapes.map(|((name, full), (_, shape))| {
            let tensor = bert.parameters.get(&name);
            let cut = if full == shape { tensor.clone() } else { tensor.index_select(&rows, 0)? };
            Ok((name, cut))
        });
        let parameters = Parameters::from_map(cut.collect::<Result<_, TrainerError>>()?, &configuration)?;
        Ok(Bert { configuration, parameters })
    }

    /// Writes the tokenizers of the cut student to `to`, from those of the full one in `from`.
    ///
    /// # Errors
    /// Failures to read or write, and damaged tokenizers.
    pub(crate) fn write_tokenizers(&self, from: &Path, to: &Path) -> Result<(), TrainerError> {
        durable::create_folder(to)?;
        let words = fs::read_to_string(from.join(WORDS)).map_err(TrainerError::io("read", &from.join(WORDS)))?;
        let words: Vec<&str> = words.split_terminator('\n').collect();
        let kept = self.rows.iter().map(|row| words.get(*row as usize).copied().unwrap_or_default());
        let kept: String = kept.flat_map(|word| [word, "\n"]).collect();
        durable::replace(&to.join(WORDS), kept.as_bytes())?;
        match &self.teachers[..] {
            [alone] => self.write_tokenizer(&from.join(&alone.tokenizer), to, None)?,
            several => self.write_tokenizer(from, to, Some(normalisation_of(several, from)?))?,
        }
        for teacher in &self.teachers {
            self.write_tokenizer(&from.join(&teacher.tokenizer), &to.join(&teacher.tokenizer), None)?;
        }
        write_known_teachers(to, &self.teachers)
    }

    /// With `normalised` it treats text so; otherwise as before.
    fn write_tokenizer(&self, from: &Path, to: &Path, normalised: Option<Normalised>) -> Result<(), TrainerError> {
        durable::create_folder(to)?;
        let [mut json, mut settings] = [read_json(&from.join(TOKENIZER))?, read_json(&from.join(SETTINGS))?];
        self.renumber(&mut json);
        if let Some(normalised) = normalised {
            json["normalizer"] = normalizer(normalised);
            settings.as_object_mut().into_iter().for_each(|keys| keys.extend(normalisation_keys(normalised)));
        }
        for (name, json) in [(TOKENIZER, json), (SETTINGS, settings)] {
            durable::replace(&to.join(name), format!("{json:#}\n").as_bytes())?;
        }
        let unchanged = fs::read(from.join(UNCHANGED)).map_err(TrainerError::io("read", &from.join(UNCHANGED)))?;
        durable::replace(&to.join(UNCHANGED), &unchanged)?;
        durable::sync_folder(to)
    }

    /// Gives a tokenizer the ids of the cut student, and takes away the tokens that it does not have.
    fn renumber(&self, tokenizer: &mut Value) {
        let new_id = |id: &Value| self.rows.binary_search(&number(id)?).ok();
        if let Some(vocabulary) = tokenizer["model"]["vocab"].as_object_mut() {
            let kept = std::mem::take(vocabulary).into_iter();
            *vocabulary = kept.filter_map(|(token, id)| Some((token, json!(new_id(&id)?)))).collect::<Map<_, _>>();
        }
        if let Some(added) = tokenizer["added_tokens"].as_array_mut() {
            added.retain(|token| new_id(&token["id"]).is_some());
            added.iter_mut().for_each(|token| token["id"] = json!(new_id(&token["id"])));
        }
        for (_, token) in tokenizer["post_processor"]["special_tokens"].as_object_mut().into_iter().flatten() {
            let ids = token["ids"].as_array_mut().into_iter().flatten();
            ids.for_each(|id| *id = json!(new_id(id)));
        }
    }
}

/// What the union of `teachers`, whose tokenizers are in `tokenizers`, does to text first.
fn normalisation_of(teachers: &[KnownTeacher], tokenizers: &Path) -> Result<Normalised, TrainerError> {
    let kinds = teachers.iter().map(|teacher| {
        let tokenizer = Tokenizer::load(&tokenizers.join(&teacher.tokenizer))?;
        Ok(tokenizer.normalisation().into())
    });
    Ok(union_normalisation(&kinds.collect::<Result<Vec<_>, TrainerError>>()?))
}

fn number(id: &Value) -> Option<u32> {
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn read_json(path: &Path) -> Result<Value, TrainerError> {
    let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| TrainerError::corrupt(path, error))
}

#[cfg(test)]
#[path = "language_cut_tests.rs"]
mod tests;
