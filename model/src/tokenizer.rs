//! A teacher's own tokenizer: WordPiece, with the ids that transformers gives.

mod cut;
mod folder;
mod learning;

pub use learning::{Coverage, LearnedVocabulary, LearningError, LearningOptions, WordCounts};

use crate::checkpoint::hexadecimal;
use crate::{Configuration, ModelError};
use cut::Cut;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::AddedToken;
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::NormalizerWrapper;

/// A WordPiece tokenizer with its special tokens by role. Cloning is cheap beside encoding; threads that encode a lot
/// use one clone each.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: Vec<String>,
    special: SpecialTokens,
    /// Ids that are never text: the five roles and whatever else the folder marks as special. Sorted.
    special_ids: Vec<u32>,
    normalisation: Normalisation,
    fingerprint: String,
    cut: Cut,
}

/// A text in token ids, without special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// `[tokens]`
    pub ids: Vec<u32>,
    /// `[tokens]`: the bytes of the text that each token stands for, first and one past the last.
    pub offsets: Vec<(usize, usize)>,
}

/// Ids of the special tokens by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Fills up rectangles; never computed here.
    pub pad: u32,
    /// Stands for words that the vocabulary cannot spell.
    pub unk: u32,
    /// Opens a sequence.
    pub cls: u32,
    /// Closes a sequence.
    pub sep: u32,
    /// Stands where a token is to be predicted.
    pub mask: u32,
}

/// What is done to a text before it is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalisation {
    /// Upper-case letters become lower-case.
    pub lowercase: bool,
    /// Accents are removed; `None`: if `lowercase`.
    pub strip_accents: Option<bool>,
    /// Every Chinese character is a word.
    pub handle_chinese_chars: bool,
}

impl Tokenizer {
    /// Reads the tokenizer in `dir` by the rules of transformers: `tokenizer.json` or `vocab.txt`, and beside either
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`. Truncation and padding are left out.
    ///
    /// Like in transformers, `tokenizer_config.json` decides about lower-casing, accents and Chinese characters (lower-case
    /// unless it says otherwise) and `tokenizer.json` only where the tokenizer's class there is a generic one.
    ///
    /// # Errors
    /// When a file cannot be read, the tokenizer is not WordPiece, or a special token is not in the vocabulary.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let folder::Loaded { inner, special } = folder::load(dir)?;
        let vocabulary = folder::dense_vocabulary(&inner, dir)?;
        let mut special_ids: Vec<u32> =
            inner.get_added_tokens_decoder().iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        special_ids.extend([special.pad, special.unk, special.cls, special.sep, special.mask]);
        special_ids.sort_unstable();
        special_ids.dedup();
        let normalisation = Normalisation::of(inner.get_normalizer());
        let fingerprint = fingerprint(&inner, &vocabulary, special, dir)?;
        let cut = Cut::suitable_for(&inner);
        Ok(Self { inner, vocabulary, special, special_ids, normalisation, fingerprint, cut })
    }

    /// Token ids of a text, without special tokens before and after it. A special token's name inside the text becomes that
    /// token, as in transformers. Memory is bounded however long the text is: it is tokenised in pieces, cut where words end.
    ///
    /// # Errors
    /// When the tokenizer fails; it does so on no valid text that we know.
    pub fn encode(&self, text: &str) -> Result<Tokens, ModelError> {
        let mut tokens = Tokens::default();
        for piece in self.cut.pieces(text) {
            let encoding = self
                .inner
                .encode(&text[piece.clone()], false)
                .map_err(|error| ModelError::Tokenise { bytes: text.len(), reason: error.to_string() })?;
            tokens.ids.extend_from_slice(encoding.get_ids());
            let moved = |(first, end): &(usize, usize)| (piece.start + first, piece.start + end);
            tokens.offsets.extend(encoding.get_offsets().iter().map(moved));
        }
        Ok(tokens)
    }

    /// The special tokens by role.
    #[must_use]
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Whether `id` has a role, or is marked as special in the folder: such a token is never masked, and never a gold label.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    /// Every token by its id, added tokens included. An id that no token has holds a name that no text contains.
    #[must_use]
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// Number of ids: one more than the largest.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Never: a tokenizer without special tokens cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vocabulary.is_empty()
    }

    /// What is done to a text before it is cut into words.
    #[must_use]
    pub fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    /// SHA-256 (hexadecimal) over everything that determines the ids of a text.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The tokenizer of the `tokenizers` crate.
    #[must_use]
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

/// Checks a checkpoint's embedding against its tokenizer. Returns the surplus rows: padding, which no token has.
///
/// # Errors
/// [`ModelError::FewerRowsThanWords`] when the checkpoint has no embedding for some words.
pub fn check_words(configuration: &Configuration, tokenizer: &Tokenizer) -> Result<usize, ModelError> {
    let (rows, words) = (configuration.vocabulary_size, tokenizer.len());
    rows.checked_sub(words).ok_or(ModelError::FewerRowsThanWords { rows, words })
}

impl Normalisation {
    fn of(normalizer: Option<&NormalizerWrapper>) -> Self {
        let mut found = Self { lowercase: false, strip_accents: Some(false), handle_chinese_chars: false };
        if let Some(normalizer) = normalizer {
            found.add(normalizer);
        }
        found
    }

    fn add(&mut self, normalizer: &NormalizerWrapper) {
        match normalizer {
            NormalizerWrapper::BertNormalizer(bert) => {
                self.lowercase |= bert.lowercase;
                self.handle_chinese_chars |= bert.handle_chinese_chars;
                if self.strip_accents != Some(true) {
                    self.strip_accents = bert.strip_accents;
                }
            }
            NormalizerWrapper::Lowercase(_) => self.lowercase = true,
            NormalizerWrapper::StripAccents(_) => self.strip_accents = Some(true),
            NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().for_each(|part| self.add(part)),
            _ => {}
        }
    }
}

/// The WordPiece model inside; the loader refuses every other kind.
fn word_piece(inner: &tokenizers::Tokenizer) -> Option<&WordPiece> {
    match inner.get_model() {
        ModelWrapper::WordPiece(model) => Some(model),
        _ => None,
    }
}

/// Everything about an added token that has a part in the ids of a text.
fn describe(id: u32, token: &AddedToken) -> String {
    let AddedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
    format!("{id} {single_word} {lstrip} {rstrip} {normalized} {special} {content}")
}

fn fingerprint(
    inner: &tokenizers::Tokenizer,
    vocabulary: &[String],
    special: SpecialTokens,
    dir: &Path,
) -> Result<String, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: dir.to_path_buf(), reason };
    let model = word_piece(inner).ok_or_else(|| malformed("not a WordPiece tokenizer".to_owned()))?;
    let json = |value: Result<Value, serde_json::Error>| value.map_err(|error| malformed(error.to_string()));
    let added: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
    let added: Vec<String> = added.into_iter().map(|(id, token)| describe(id, &token)).collect();
    let parts = [
        "tokenizer 1".to_owned(),
        json(serde_json::to_value(inner.get_normalizer()))?.to_string(),
        json(serde_json::to_value(inner.get_pre_tokenizer()))?.to_string(),
        format!("{} {} {}", model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word),
        format!("{special:?} {}", inner.get_encode_special_tokens()),
    ];
    let mut hash = Sha256::new();
    for part in parts.iter().chain(&added).chain(vocabulary) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hexadecimal(&hash.finalize()))
}
