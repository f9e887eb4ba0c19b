//! The tokenizers that go with an exported student, as transformers loads them.
//!
//! - In the student's folder: a WordPiece tokenizer over the union vocabulary (`tokenizer.json`, `vocab.txt`,
//!   `tokenizer_config.json`, `special_tokens_map.json`). Its tokenisation of a text is not any teacher's.
//! - In `tokenizers/<teacher>/`: each teacher's own tokenizer in student ids. It cuts a text exactly as the teacher's does,
//!   and its ids are those that the student was trained with on that teacher's copies. Ids of tokens that the teacher
//!   does not have are missing from it, which `tokenizers` and transformers allow.
//! - `teachers.json` says which languages each of them is for.
//!
//! The union normalises text as the teachers do if all do it alike; otherwise it changes no letters, since a cased
//! tokenizer can spell the tokens of both kinds.
//!
//! A tokenizer may have added tokens outside its WordPiece vocabulary. `tokenizers` gives such tokens ids of its own making,
//! so in the exported tokenizer they are part of that vocabulary. That shows only where WordPiece meets the text of one,
//! which needs a token that is matched before normalisation or as a whole word; such tokens are logged.

use crate::durable;
use crate::error::TrainerError;
use crate::vocabulary::{Normalised, SPECIAL_COUNT, TeacherTokens, Vocabulary, VocabularyMap, file_name};
use model::{LearnedVocabulary, SpecialTokens, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folder of the teachers' tokenizers inside an exported student's.
pub const TEACHER_TOKENIZERS: &str = "tokenizers";

/// Which tokenizer is whose, in an exported student's folder.
const TEACHERS: &str = "teachers.json";
const TOKENIZER_FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
/// `model_max_length` of a tokenizer that no model has yet: BERT's.
const LEARNED_LENGTH: usize = 512;

/// Writes the union tokenizer to `dir`, and each teacher's in student ids to `dir/tokenizers/<teacher>`. `teachers` are
/// in the order of the vocabulary's maps. Returns the folders of the teachers' tokenizers.
///
/// # Errors
/// When a file cannot be written, or the teachers are not the vocabulary's.
pub fn export_tokenizers(
    dir: &Path,
    vocabulary: &Vocabulary,
    teachers: &[&Tokenizer],
    max_sequence_length: usize,
) -> Result<Vec<PathBuf>, TrainerError> {
    if teachers.len() != vocabulary.maps().len() {
        let (given, known) = (teachers.len(), vocabulary.maps().len());
        return Err(TrainerError::Configuration(format!("{given} tokenizers for a vocabulary of {known} teachers")));
    }
    export_union(dir, vocabulary, max_sequence_length)?;
    let folders = teacher_folders(dir, vocabulary);
    for ((folder, map), tokenizer) in folders.iter().zip(vocabulary.maps()).zip(teachers) {
        export_teacher(folder, map, tokenizer, max_sequence_length)?;
    }
    Ok(folders)
}

/// A teacher whose tokenizer goes with a student.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTeacher {
    /// Its name.
    pub name: String,
    /// The languages that it teaches.
    pub languages: Vec<String>,
    /// The folder of its tokenizer in student ids, in that of the student.
    pub tokenizer: PathBuf,
}

/// Writes whose tokenizers are in `dir`, for which languages: `teachers.json`.
///
/// # Errors
/// When it cannot be written.
pub fn write_known_teachers(dir: &Path, teachers: &[KnownTeacher]) -> Result<(), TrainerError> {
    let bytes = format!("{:#}\n", json!({ "teachers": teachers })).into_bytes();
    durable::replace(&dir.join(TEACHERS), &bytes)
}

/// Whose tokenizers are in `dir`.
///
/// # Errors
/// When that is not written there, or damaged.
pub fn known_teachers(dir: &Path) -> Result<Vec<KnownTeacher>, TrainerError> {
    let path = dir.join(TEACHERS);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(TrainerError::Configuration(format!(
                "{} is missing: the run was made by an earlier version; `run` writes it when it starts the next time",
                path.display()
            )));
        }
        read => read.map_err(TrainerError::io("read", &path))?,
    };
    let mut file: BTreeMap<String, Vec<KnownTeacher>> =
        serde_json::from_slice(&bytes).map_err(|error| TrainerError::corrupt(&path, error))?;
    file.remove("teachers").ok_or_else(|| TrainerError::corrupt(&path, "it names no teachers"))
}

/// Writes the union tokenizer alone.
///
/// # Errors
/// When a file cannot be written.
pub fn export_union(dir: &Path, vocabulary: &Vocabulary, max_sequence_length: usize) -> Result<(), TrainerError> {
    let Some(names) = vocabulary.tokens().first_chunk::<SPECIAL_COUNT>() else {
        return Err(TrainerError::Configuration("the vocabulary is empty".to_owned()));
    };
    let names = Names::new(names.each_ref().map(String::as_str));
    let kinds: Vec<Normalised> = vocabulary.maps().iter().map(|map| map.normalisation).collect();
    let normalised = union_normalisation(&kinds);
    let ids: Map<String, Value> =
        vocabulary.tokens().iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": names.0.iter().enumerate().map(|(id, (_, name))| json!({
            "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })).collect::<Vec<_>>(),
        "normalizer": normalizer(normalised),
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": names.template(crate::vocabulary::SPECIAL),
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": names.get("unk_token"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    });
    let mut configuration = names.configuration("BertTokenizer", max_sequence_length);
    configuration.extend(normalisation_keys(normalised));
    write(dir, &names, &tokenizer, configuration)?;
    durable::replace(&dir.join("vocab.txt"), vocabulary.lines().as_bytes())
}

/// That of the teachers if all agree, else one that changes no letters.
pub(crate) fn union_normalisation(kinds: &[Normalised]) -> Normalised {
    let unchanged = Normalised { lowercase: false, strip_accents: false, handle_chinese_chars: true };
    let first = kinds.first().copied().unwrap_or(unchanged);
    if kinds.iter().all(|kind| *kind == first) {
        return first;
    }
    let handle_chinese_chars = kinds.iter().any(|kind| kind.handle_chinese_chars);
    Normalised { handle_chinese_chars, ..unchanged }
}

/// `normalizer` of a `tokenizer.json`.
pub(crate) fn normalizer(normalised: Normalised) -> Value {
    json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": normalised.handle_chinese_chars,
        "strip_accents": normalised.strip_accents,
        "lowercase": normalised.lowercase,
    })
}

/// What a `tokenizer_config.json` says of it.
pub(crate) fn normalisation_keys(normalised: Normalised) -> [(String, Value); 3] {
    [
        ("do_lower_case", normalised.lowercase),
        ("strip_accents", normalised.strip_accents),
        ("tokenize_chinese_chars", normalised.handle_chinese_chars),
    ]
    .map(|(key, is_so)| (key.to_owned(), json!(is_so)))
}

/// Writes a vocabulary that was learned from text as the folder of a tokenizer, with the ids that it has there.
///
/// # Errors
/// As [`check_tokenizer_folder`], and when a file cannot be written.
pub fn export_learned(dir: &Path, learned: &LearnedVocabulary) -> Result<(), TrainerError> {
    check_tokenizer_folder(dir)?;
    let tokens = TeacherTokens {
        name: "learned",
        tokens: &learned.tokens,
        special: learned.special,
        normalisation: learned.normalisation,
        fingerprint: "",
    };
    // The union of one vocabulary whose special tokens come first is that vocabulary.
    export_union(dir, &Vocabulary::union(&[tokens])?, LEARNED_LENGTH)
}

/// Whether a tokenizer may be written to `dir`: nothing is there, or nothing but a tokenizer.
///
/// # Errors
/// [`TrainerError::ExportTarget`] when it may not.
pub fn check_tokenizer_folder(dir: &Path) -> Result<(), TrainerError> {
    let refused = || TrainerError::ExportTarget { path: dir.to_owned() };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(refused()),
        Err(error) => return Err(TrainerError::io("read", dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(TrainerError::io("read", dir))?.file_name();
        if !TOKENIZER_FILES.iter().any(|known| name == *known) {
            return Err(refused());
        }
    }
    Ok(())
}

/// Writes a teacher's tokenizer in student ids.
fn export_teacher(
    dir: &Path,
    map: &VocabularyMap,
    tokenizer: &Tokenizer,
    max_sequence_length: usize,
) -> Result<(), TrainerError> {
    let mut json = serde_json::to_value(tokenizer.inner()).map_err(|error| TrainerError::corrupt(dir, error))?;
    let student_id = |id: &Value| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        id.and_then(|id| map.student_id(id)).ok_or_else(|| {
            TrainerError::Configuration(format!("the tokenizer of `{}` is not the vocabulary's", map.teacher))
        })
    };
    let mut ids = Map::new();
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        ids.insert(token.clone(), json!(student_id(id)?));
    }
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        let id = student_id(&token["id"])?;
        token["id"] = json!(id);
        let content = token["content"].as_str().unwrap_or_default();
        let is_outside = ids.insert(content.to_owned(), json!(id)).is_none();
        if is_outside && (token["single_word"] == true || token["normalized"] == false) {
            tracing::debug!(teacher = map.teacher, token = content, "an added token joins the WordPiece vocabulary");
        }
    }
    json["model"]["vocab"] = Value::Object(ids);
    let name = |id: u32| tokenizer.vocabulary().get(id as usize).map_or("", String::as_str);
    let SpecialTokens { pad, unk, cls, sep, mask } = tokenizer.special();
    let names = Names::new([pad, unk, cls, sep, mask].map(name));
    json["post_processor"] = names.template(crate::vocabulary::SPECIAL);
    // A generic class: transformers then takes everything from tokenizer.json.
    let mut configuration = names.configuration("PreTrainedTokenizerFast", max_sequence_length);
    if tokenizer.inner().get_encode_special_tokens() {
        configuration.insert("split_special_tokens".to_owned(), json!(true));
    }
    write(dir, &names, &json, configuration)
}

/// The folder of each teacher's tokenizer; names that become equal as file names are told apart by their index.
fn teacher_folders(dir: &Path, vocabulary: &Vocabulary) -> Vec<PathBuf> {
    let mut taken = BTreeSet::new();
    let mut folders = Vec::new();
    for (index, map) in vocabulary.maps().iter().enumerate() {
        let mut name = file_name(&map.teacher);
        while !taken.insert(name.to_lowercase()) {
            name = format!("{name}-{index}");
        }
        folders.push(dir.join(TEACHER_TOKENIZERS).join(name));
    }
    folders
}

/// Names of the special tokens by transformers' keys.
struct Names<'a>([(&'static str, &'a str); SPECIAL_COUNT]);

impl<'a> Names<'a> {
    /// `names` in the order of the roles.
    fn new([pad, unk, cls, sep, mask]: [&'a str; SPECIAL_COUNT]) -> Self {
        Self([("pad_token", pad), ("unk_token", unk), ("cls_token", cls), ("sep_token", sep), ("mask_token", mask)])
    }

    fn get(&self, key: &str) -> &'a str {
        self.0.iter().find(|(known, _)| *known == key).map_or("", |(_, name)| name)
    }

    /// \[CLS\] text \[SEP\], or \[CLS\] text \[SEP\] text \[SEP\].
    fn template(&self, ids: SpecialTokens) -> Value {
        let (cls, sep) = (self.get("cls_token"), self.get("sep_token"));
        let special = |name: &str, segment: u8| json!({ "SpecialToken": { "id": name, "type_id": segment } });
        let sequence = |name: &str, segment: u8| json!({ "Sequence": { "id": name, "type_id": segment } });
        let entry = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
        let single = [special(cls, 0), sequence("A", 0), special(sep, 0)];
        let second = [sequence("B", 1), special(sep, 1)];
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": single.iter().chain(&second).collect::<Vec<_>>(),
            "special_tokens": { cls: entry(cls, ids.cls), sep: entry(sep, ids.sep) },
        })
    }

    fn configuration(&self, class: &str, max_sequence_length: usize) -> Map<String, Value> {
        let mut configuration = Map::new();
        configuration.insert("tokenizer_class".to_owned(), json!(class));
        configuration.insert("model_max_length".to_owned(), json!(max_sequence_length));
        configuration.extend(self.map());
        configuration
    }

    fn map(&self) -> Map<String, Value> {
        self.0.iter().map(|(key, name)| ((*key).to_owned(), json!(name))).collect()
    }
}

fn write(
    dir: &Path,
    names: &Names<'_>,
    tokenizer: &Value,
    configuration: Map<String, Value>,
) -> Result<(), TrainerError> {
    durable::create_folder(dir)?;
    let files = [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", &Value::Object(configuration)),
        ("special_tokens_map.json", &Value::Object(names.map())),
    ];
    for (file, content) in files {
        let path = dir.join(file);
        let mut bytes = serde_json::to_vec_pretty(content).map_err(|error| TrainerError::corrupt(&path, error))?;
        bytes.push(b'\n');
        durable::replace(&path, &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tokenizer_export_tests.rs"]
mod tests;
