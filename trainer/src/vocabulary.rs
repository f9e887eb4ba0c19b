//! The student's vocabulary: the union of the teachers', and every teacher's map into it.
//!
//! Special tokens come first, by role, spelled as the first teacher spells them; then each teacher's ordinary
//! tokens in the order of their first appearance (teacher order, then id order). A teacher's special tokens map to
//! the unified ones by role, whatever they are called there. An id never changes once given: a later teacher's new
//! tokens go to the end.
//!
//! The rows that its new tokens begin with are described in `growth.rs`.
//!
//! A token is special only by role, so a token that is ordinary in one teacher and spelled like a special token of
//! another one remains a token of its own. Where its spelling is that of a *unified* special token, the union lists
//! it as `[ordinary] ` and the spelling: a text that holds a space, which no WordPiece tokenizer produces. So every
//! map is injective, and `vocab.txt` lists no token twice.
//!
//! On disk: `vocab.txt` (a token a line), `maps/<index>-<teacher>.json` (student id by teacher id), and
//! `vocabulary.json`, which names the teachers and holds checksums of the others. It is written last; what the other
//! files hold beyond it was never used and is ignored.

use crate::durable;
use crate::error::TrainerError;
use model::{Normalisation, SpecialTokens, Tokenizer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Special tokens of the student, by role.
pub const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
/// Number of special tokens.
pub const SPECIAL_COUNT: usize = 5;

const ROLES: [&str; SPECIAL_COUNT] = ["pad", "unk", "cls", "sep", "mask"];
const ORDINARY: &str = "[ordinary] ";
const CONTINUATION: &str = "##";
const FORMAT: u32 = 1;

/// What the union needs to know of one teacher.
#[derive(Clone, Copy, Debug)]
pub struct TeacherTokens<'a> {
    /// Name in the configuration.
    pub name: &'a str,
    /// Tokens by id.
    pub tokens: &'a [String],
    /// Special tokens by role.
    pub special: SpecialTokens,
    /// What happens to text before it is cut into tokens.
    pub normalisation: Normalisation,
    /// Hash of the tokenizer.
    pub fingerprint: &'a str,
}

impl<'a> TeacherTokens<'a> {
    /// The tokens of a loaded tokenizer.
    #[must_use]
    pub fn new(name: &'a str, tokenizer: &'a Tokenizer) -> Self {
        Self {
            name,
            tokens: tokenizer.vocabulary(),
            special: tokenizer.special(),
            normalisation: tokenizer.normalisation(),
            fingerprint: tokenizer.fingerprint(),
        }
    }

    fn special_ids(&self) -> [u32; SPECIAL_COUNT] {
        let SpecialTokens { pad, unk, cls, sep, mask } = self.special;
        [pad, unk, cls, sep, mask]
    }
}

/// A teacher's token ids in the student's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VocabularyMap {
    /// Name of the teacher.
    pub teacher: String,
    /// Hash of its tokenizer.
    pub fingerprint: String,
    /// How it normalises text.
    pub normalisation: Normalised,
    /// Tokens that no teacher before it has.
    pub new: usize,
    /// Student id by teacher id; no two are equal.
    pub to_student: Vec<u32>,
}

impl VocabularyMap {
    /// The student's id for a teacher's; `None` if the teacher has no such token.
    #[must_use]
    pub fn student_id(&self, teacher_id: u32) -> Option<u32> {
        self.to_student.get(teacher_id as usize).copied()
    }

    /// Number of the teacher's tokens.
    #[must_use]
    pub fn size(&self) -> usize {
        self.to_student.len()
    }
}

/// What a tokenizer does to text first, with defaults resolved: two that are equal here treat every text alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Normalised {
    /// Letters become lower case.
    pub lowercase: bool,
    /// Accents are removed.
    pub strip_accents: bool,
    /// Chinese characters are set apart.
    pub handle_chinese_chars: bool,
}

impl From<Normalisation> for Normalised {
    fn from(normalisation: Normalisation) -> Self {
        Self {
            lowercase: normalisation.lowercase,
            // As in the original BERT, accents go with upper case unless something else is said.
            strip_accents: normalisation.strip_accents.unwrap_or(normalisation.lowercase),
            handle_chinese_chars: normalisation.handle_chinese_chars,
        }
    }
}

impl Normalised {
    fn describe(self) -> String {
        let case = if self.lowercase { "uncased" } else { "cased" };
        let accents = if self.strip_accents { "accents removed" } else { "accents kept" };
        let chinese = if self.handle_chinese_chars { "" } else { ", Chinese characters not set apart" };
        format!("{case}, {accents}{chinese}")
    }
}

/// The union of the teachers' vocabularies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    maps: Vec<VocabularyMap>,
}

impl Vocabulary {
    /// The union over `teachers`, in their order.
    ///
    /// # Errors
    /// Without teachers, or when a tokenizer lists a token twice or gives two roles to one token.
    pub fn union(teachers: &[TeacherTokens<'_>]) -> Result<Self, TrainerError> {
        if teachers.is_empty() {
            return Err(TrainerError::Configuration("a union vocabulary needs at least one teacher".to_owned()));
        }
        let mut vocabulary = Self::default();
        for teacher in teachers {
            vocabulary.extend(teacher)?;
        }
        Ok(vocabulary)
    }

    /// Opens the vocabulary in `dir`, or creates it; teachers that it does not know yet, after those it knows,
    /// extend it.
    ///
    /// # Errors
    /// [`TrainerError::Identity`] when it was made for other teachers, [`TrainerError::Corrupt`] when its files are
    /// damaged, and as [`Self::union`] and [`Self::save`].
    pub fn open(dir: &Path, teachers: &[TeacherTokens<'_>]) -> Result<Self, TrainerError> {
        let wanted = Self::union(teachers)?;
        let known = if dir.join(MANIFEST).exists() {
            let stored = Self::load(dir)?;
            stored.check_teachers(dir, teachers)?;
            if !wanted.continues(&stored) {
                let reason = "it is not the union of these teachers' tokens; delete the folder to have it made again";
                return Err(TrainerError::corrupt(dir, reason));
            }
            stored.maps.len()
        } else {
            0
        };
        if known < wanted.maps.len() {
            wanted.save(dir)?;
        }
        Ok(wanted)
    }

    /// Appends a teacher: its special tokens join the unified ones, its new tokens go to the end.
    ///
    /// # Errors
    /// When the tokenizer lists a token twice or gives two roles to one token; nothing has changed then.
    pub fn extend(&mut self, teacher: &TeacherTokens<'_>) -> Result<(), TrainerError> {
        check_teacher(teacher)?;
        let special_ids = teacher.special_ids();
        if self.maps.is_empty() {
            self.tokens = special_ids.iter().map(|id| teacher.tokens[*id as usize].clone()).collect();
        }
        let before = self.tokens.len();
        let mut to_student = Vec::with_capacity(teacher.tokens.len());
        for (id, token) in teacher.tokens.iter().enumerate() {
            let role = special_ids.iter().position(|special| *special as usize == id);
            to_student.push(match role {
                Some(role) => role as u32,
                None => self.ordinary(token),
            });
        }
        let special_new = if self.maps.is_empty() { SPECIAL_COUNT } else { 0 };
        self.maps.push(VocabularyMap {
            teacher: teacher.name.to_owned(),
            fingerprint: teacher.fingerprint.to_owned(),
            normalisation: teacher.normalisation.into(),
            new: self.tokens.len() - before + special_new,
            to_student,
        });
        Ok(())
    }

    /// Number of tokens.
    #[must_use]
    pub fn size(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens by student id.
    #[must_use]
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The tokens, with ids below `known`, into which WordPiece cuts token `id`: the longest one that it begins with, and so on.
    /// `None`: it cannot be cut so.
    #[must_use]
    pub fn pieces(&self, id: usize, known: usize) -> Option<Vec<u32>> {
        let token = self.tokens.get(id).filter(|token| !token.starts_with(ORDINARY))?;
        let rest = token.strip_prefix(CONTINUATION).filter(|rest| !rest.is_empty());
        let (mut continues, mut rest) = (rest.is_some(), rest.unwrap_or(token));
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let prefix = if continues { CONTINUATION } else { "" };
            let ends = rest.char_indices().map(|(at, character)| at + character.len_utf8()).rev();
            let (end, piece) = ends.into_iter().find_map(|end| {
                let piece = self.ids.get(&format!("{prefix}{}", &rest[..end])).copied()?;
                ((piece as usize) < known).then_some((end, piece))
            })?;
            pieces.push(piece);
            (continues, rest) = (true, &rest[end..]);
        }
        Some(pieces)
    }

    /// Maps of the teachers, in teacher order.
    #[must_use]
    pub fn maps(&self) -> &[VocabularyMap] {
        &self.maps
    }

    /// Characters that each token stands for, by student id: the continuation mark is not counted.
    #[must_use]
    pub fn characters(&self) -> Vec<u32> {
        let characters = |token: &String| {
            let text = unescape(token);
            let text = text.strip_prefix(CONTINUATION).filter(|rest| !rest.is_empty()).unwrap_or(&text);
            text.chars().count() as u32
        };
        self.tokens.iter().map(characters).collect()
    }

    /// What a user should know: teachers that normalise text otherwise than the first one does.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Some((first, others)) = self.maps.split_first() else { return Vec::new() };
        others
            .iter()
            .filter(|map| map.normalisation != first.normalisation)
            .map(|map| {
                format!(
                    "teacher `{}` normalises text ({}) otherwise than teacher `{}` ({}): their tokens are merged as \
                     they are spelled, and the exported union tokenizer is cased",
                    map.teacher,
                    map.normalisation.describe(),
                    first.teacher,
                    first.normalisation.describe()
                )
            })
            .collect()
    }

    /// Writes the vocabulary to `dir`, durably; a crash leaves what was there before, or this.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), TrainerError> {
        let maps_dir = dir.join(MAPS);
        durable::create_folder(dir)?;
        durable::create_folder(&maps_dir)?;
        let words = self.lines();
        let mut teachers = Vec::with_capacity(self.maps.len());
        for (index, map) in self.maps.iter().enumerate() {
            let file = format!("{index:02}-{}.json", file_name(&map.teacher));
            let content = MapFile { teacher: &map.teacher, fingerprint: &map.fingerprint, to_student: &map.to_student };
            let path = maps_dir.join(&file);
            durable::replace(&path, &json(&path, &content)?)?;
            teachers.push(ManifestTeacher {
                name: map.teacher.clone(),
                fingerprint: map.fingerprint.clone(),
                normalisation: map.normalisation,
                size: map.to_student.len(),
                new: map.new,
                sha256: hash_ids(&map.to_student),
                map: file,
            });
        }
        durable::replace(&dir.join(WORDS), words.as_bytes())?;
        let manifest = Manifest { format: FORMAT, size: self.size(), sha256: hash(words.as_bytes()), teachers };
        let path = dir.join(MANIFEST);
        durable::replace(&path, &json(&path, &manifest)?)
    }

    /// Reads the vocabulary in `dir`.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn load(dir: &Path) -> Result<Self, TrainerError> {
        let path = dir.join(MANIFEST);
        let manifest: Manifest = parse(&path)?;
        if manifest.format != FORMAT {
            let reason = format!("format {} is unknown to this version, which knows {FORMAT}", manifest.format);
            return Err(TrainerError::corrupt(&path, reason));
        }
        let tokens = load_words(&dir.join(WORDS), &manifest)?;
        let ids = ids_of(&tokens);
        let maps = manifest.teachers.into_iter().map(|teacher| load_map(dir, teacher, tokens.len()));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { tokens, ids, maps })
    }

    /// The content of `vocab.txt`.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut lines = String::with_capacity(self.tokens.iter().map(|token| token.len() + 1).sum());
        for token in &self.tokens {
            lines.push_str(token);
            lines.push('\n');
        }
        lines
    }

    /// The id of an ordinary token, which is given one if it is new.
    fn ordinary(&mut self, token: &str) -> u32 {
        let spelling = self.spelling(token);
        if let Some(id) = self.ids.get(spelling.as_ref()) {
            return *id;
        }
        let id = self.tokens.len() as u32;
        let spelling = spelling.into_owned();
        self.tokens.push(spelling.clone());
        self.ids.insert(spelling, id);
        id
    }

    /// How an ordinary token is listed. Different tokens are listed differently, none like a special token, and
    /// each on one line.
    fn spelling<'a>(&self, token: &'a str) -> Cow<'a, str> {
        let like_special = self.tokens.iter().take(SPECIAL_COUNT).any(|special| special == token);
        let plain = !like_special && !token.is_empty() && !token.starts_with(ORDINARY) && !token.contains(['\n', '\r']);
        if plain {
            return Cow::Borrowed(token);
        }
        let escaped = token.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        Cow::Owned(format!("{ORDINARY}{escaped}"))
    }

    /// Whether this union begins with `earlier`.
    fn continues(&self, earlier: &Self) -> bool {
        self.tokens.starts_with(&earlier.tokens) && self.maps.starts_with(&earlier.maps)
    }

    fn check_teachers(&self, dir: &Path, teachers: &[TeacherTokens<'_>]) -> Result<(), TrainerError> {
        let mut differences = Vec::new();
        for (index, map) in self.maps.iter().enumerate() {
            match teachers.get(index) {
                None => differences.push(format!("teacher `{}` is missing", map.teacher)),
                Some(new) if new.name != map.teacher => {
                    differences.push(format!("teacher {} was `{}`, is `{}`", index + 1, map.teacher, new.name));
                }
                Some(new) if new.fingerprint != map.fingerprint => {
                    differences.push(format!("the tokenizer of teacher `{}` has changed", map.teacher));
                }
                Some(_) => {}
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrainerError::Identity { path: dir.to_owned(), differences: differences.join("; ") })
    }
}

/// `name` as a file or folder name.
pub(crate) fn file_name(name: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().map(|c| if safe(c) { c } else { '_' }).collect();
    if name.trim_matches('.').is_empty() { format!("_{name}") } else { name }
}

const MANIFEST: &str = "vocabulary.json";
const WORDS: &str = "vocab.txt";
const MAPS: &str = "maps";

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    size: usize,
    /// Of the first `size` lines of `vocab.txt`.
    sha256: String,
    teachers: Vec<ManifestTeacher>,
}

#[derive(Serialize, Deserialize)]
struct ManifestTeacher {
    name: String,
    fingerprint: String,
    normalisation: Normalised,
    size: usize,
    new: usize,
    map: String,
    /// Of the map's student ids, little-endian.
    sha256: String,
}

#[derive(Serialize)]
struct MapFile<'a> {
    teacher: &'a str,
    fingerprint: &'a str,
    to_student: &'a [u32],
}

#[derive(Deserialize)]
struct LoadedMap {
    to_student: Vec<u32>,
}

fn load_words(path: &Path, manifest: &Manifest) -> Result<Vec<String>, TrainerError> {
    let text = fs::read_to_string(path).map_err(TrainerError::io("read", path))?;
    let end = text.match_indices('\n').nth(manifest.size.saturating_sub(1)).map_or(text.len(), |(at, _)| at + 1);
    if hash(&text.as_bytes()[..end]) != manifest.sha256 {
        return Err(TrainerError::corrupt(path, "its first lines are not those that were written; restore the file"));
    }
    Ok(text[..end].split_terminator('\n').map(str::to_owned).collect())
}

fn load_map(dir: &Path, teacher: ManifestTeacher, vocabulary_size: usize) -> Result<VocabularyMap, TrainerError> {
    let path = dir.join(MAPS).join(&teacher.map);
    let to_student = parse::<LoadedMap>(&path)?.to_student;
    let inside = to_student.iter().all(|id| (*id as usize) < vocabulary_size);
    if hash_ids(&to_student) != teacher.sha256 || to_student.len() != teacher.size || !inside {
        return Err(TrainerError::corrupt(&path, "its ids are not those that were written; restore the file"));
    }
    Ok(VocabularyMap {
        teacher: teacher.name,
        fingerprint: teacher.fingerprint,
        normalisation: teacher.normalisation,
        new: teacher.new,
        to_student,
    })
}

fn ids_of(tokens: &[String]) -> HashMap<String, u32> {
    tokens.iter().enumerate().skip(SPECIAL_COUNT).map(|(id, token)| (token.clone(), id as u32)).collect()
}

fn check_teacher(teacher: &TeacherTokens<'_>) -> Result<(), TrainerError> {
    let fail = |reason: String| Err(TrainerError::Configuration(format!("teacher `{}`: {reason}", teacher.name)));
    let special_ids = teacher.special_ids();
    for (index, (id, role)) in special_ids.iter().zip(ROLES).enumerate() {
        let Some(token) = teacher.tokens.get(*id as usize) else {
            let size = teacher.tokens.len();
            return fail(format!("its {role} token has id {id}, but its vocabulary has {size} tokens"));
        };
        if let Some(other) = special_ids[..index].iter().position(|earlier| earlier == id) {
            return fail(format!("`{token}` is both its {} and its {role} token", ROLES[other]));
        }
        if token.is_empty() || token.contains(['\n', '\r']) || token.starts_with(ORDINARY) {
            return fail(format!("`{token}` cannot be the name of its {role} token"));
        }
    }
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(teacher.tokens.len());
    for (id, token) in teacher.tokens.iter().enumerate() {
        if let Some(earlier) = seen.insert(token, id) {
            return fail(format!("its vocabulary lists `{token}` twice, as {earlier} and {id}"));
        }
    }
    Ok(())
}

fn unescape(listed: &str) -> Cow<'_, str> {
    let Some(escaped) = listed.strip_prefix(ORDINARY) else { return Cow::Borrowed(listed) };
    let mut text = String::new();
    let mut characters = escaped.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    Cow::Owned(text)
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash_ids(ids: &[u32]) -> String {
    hash(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, TrainerError> {
    let mut bytes = serde_json::to_vec(value).map_err(|error| TrainerError::corrupt(path, error))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TrainerError> {
    let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| TrainerError::corrupt(path, error))
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
