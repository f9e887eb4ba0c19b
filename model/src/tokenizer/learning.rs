//! Learns a WordPiece vocabulary from text, as BERT's tokenizers are made.
//!
//! Words are counted while the text streams by; the `tokenizers` crate's trainer then joins the pairs of pieces that are most frequent.
//! The result depends on the words and their counts alone. The trainer by itself leaves two things to the order of a hash map: which of
//! equally frequent characters are left out, and the ids of continuing characters, which decide between pairs that are equally
//! frequent. Here the characters are chosen before, and their ids given in the order of the characters.

use super::{Normalisation, SpecialTokens, Tokenizer};
use crate::ModelError;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
};

const CONTINUATION: &str = "##";
/// Ids of the special tokens in a vocabulary that was learned.
const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
/// Their names, by id.
const SPECIAL_NAMES: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// A longer word is [UNK] whatever the vocabulary holds, as in BERT.
const WORD_CHARACTERS_MAX: usize = 100;
/// Different words that are kept at a time; above it the rarest ones are forgotten.
const WORDS_MAX: usize = 20_000_000;

/// What a vocabulary is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearningOptions {
    /// Tokens, special ones included. There are fewer if the text gives no more.
    pub size: usize,
    /// A pair of pieces that is rarer is not joined.
    pub min_frequency: u64,
    /// Characters that words may consist of, the most frequent ones. A word with another one teaches nothing: it will be \[UNK\].
    pub limit_alphabet: usize,
}

/// Why no vocabulary can be learned.
#[derive(Debug, thiserror::Error)]
pub enum LearningError {
    /// Nothing was counted.
    #[error("there is no word in the text")]
    NoWords,
    /// Not even the characters fit.
    #[error(
        "a vocabulary of {size} tokens is too small: {characters} characters, at the beginning of words and inside, and the special \
         tokens need {needed}; ask for more tokens or limit the alphabet"
    )]
    TooSmall {
        /// Tokens asked for.
        size: usize,
        /// Different characters.
        characters: usize,
        /// Tokens needed at least.
        needed: usize,
    },
    /// The `tokenizers` crate refused.
    #[error("cannot learn a vocabulary: {0}")]
    Trainer(String),
}

/// How often each word occurs in a text, after BERT's normalisation and its cutting into words.
#[derive(Clone, Debug)]
pub struct WordCounts {
    words: HashMap<String, u64>,
    normaliser: BertNormalizer,
    words_max: usize,
    /// Words that occurred so often, or less, may have been forgotten.
    forgotten: u64,
}

/// A vocabulary that was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedVocabulary {
    /// By id: the special tokens, characters, continuing characters, then what was joined, in this order.
    pub tokens: Vec<String>,
    /// The special tokens by role.
    pub special: SpecialTokens,
    /// What is done to a text before it is cut into words.
    pub normalisation: Normalisation,
    /// Different characters that the tokens consist of.
    pub characters: usize,
}

/// How a tokenizer cuts the words of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Words, each as often as it occurs.
    pub words: u64,
    /// Tokens per word.
    pub tokens_per_word: f64,
    /// Share of the words that the vocabulary cannot spell.
    pub unknown: f64,
}

impl WordCounts {
    /// Nothing counted. `lowercase`: upper case and accents are removed, as uncased BERT does.
    #[must_use]
    pub fn new(lowercase: bool) -> Self {
        let normaliser = BertNormalizer::new(true, true, None, lowercase);
        Self { words: HashMap::new(), normaliser, words_max: WORDS_MAX, forgotten: 0 }
    }

    /// Counts the words of a text.
    ///
    /// # Errors
    /// When the `tokenizers` crate fails; it does so on no valid text that we know.
    pub fn add(&mut self, text: &str) -> Result<(), LearningError> {
        let failed = |error: tokenizers::Error| LearningError::Trainer(error.to_string());
        // No word reaches across these; a normalised text takes many times its size.
        for stretch in text.split([' ', '\n', '\t', '\r']).filter(|stretch| !stretch.is_empty()) {
            let mut normalised = NormalizedString::from(stretch);
            self.normaliser.normalize(&mut normalised).map_err(failed)?;
            let mut words = PreTokenizedString::from(normalised);
            BertPreTokenizer.pre_tokenize(&mut words).map_err(failed)?;
            for (word, ..) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                self.count(word);
            }
        }
        Ok(())
    }

    /// Different words.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Words that occurred so often, or less, may have been forgotten to save memory; 0: none was.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Learns a vocabulary. The same words with the same counts give the same one.
    ///
    /// # Errors
    /// When there are no words, or too many characters for the size.
    pub fn learn(&self, options: &LearningOptions) -> Result<LearnedVocabulary, LearningError> {
        let alphabet = self.alphabet(options.limit_alphabet);
        let usable = |word: &&String| word.chars().all(|character| alphabet.contains(&character));
        // In the order of the words: nothing is to depend on that of the hash map.
        let words: BTreeMap<&String, u64> =
            self.words.iter().filter(|(word, _)| usable(word)).map(|(word, count)| (word, *count)).collect();
        if words.is_empty() {
            return Err(LearningError::NoWords);
        }
        let continuing: BTreeSet<char> = words.keys().flat_map(|word| word.chars().skip(1)).collect();
        let first: Vec<String> = SPECIAL_NAMES
            .iter()
            .map(|name| (*name).to_owned())
            .chain(alphabet.iter().map(char::to_string))
            .chain(continuing.iter().map(|character| format!("{CONTINUATION}{character}")))
            .collect();
        if first.len() > options.size {
            let (size, characters, needed) = (options.size, alphabet.len(), first.len());
            return Err(LearningError::TooSmall { size, characters, needed });
        }
        let tokens = join(&words, &first, options)?;
        let normalisation = Normalisation {
            lowercase: self.normaliser.lowercase,
            strip_accents: self.normaliser.strip_accents,
            handle_chinese_chars: self.normaliser.handle_chinese_chars,
        };
        Ok(LearnedVocabulary { tokens, special: SPECIAL, normalisation, characters: alphabet.len() })
    }

    /// How `tokenizer` cuts these words.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn coverage(&self, tokenizer: &Tokenizer) -> Result<Coverage, ModelError> {
        let (mut words, mut tokens, mut unknown) = (0, 0, 0);
        for (word, count) in &self.words {
            let ids = tokenizer.encode(word)?.ids;
            words += count;
            tokens += count * ids.len() as u64;
            unknown += if ids.contains(&tokenizer.special().unk) { *count } else { 0 };
        }
        let per_word = |sum: u64| sum as f64 / words.max(1) as f64;
        Ok(Coverage { words, tokens_per_word: per_word(tokens), unknown: per_word(unknown) })
    }

    fn count(&mut self, word: &str) {
        if let Some(count) = self.words.get_mut(word) {
            *count += 1;
            return;
        }
        if word.chars().count() > WORD_CHARACTERS_MAX {
            return;
        }
        while self.words.len() >= self.words_max {
            self.forgotten += 1;
            let rare = self.forgotten;
            self.words.retain(|_, count| *count > rare);
        }
        self.words.insert(word.to_owned(), 1);
    }

    /// The most frequent characters, of equally frequent ones the first.
    fn alphabet(&self, limit: usize) -> BTreeSet<char> {
        let mut counts: BTreeMap<char, u64> = BTreeMap::new();
        for (word, count) in &self.words {
            for character in word.chars() {
                *counts.entry(character).or_default() += count;
            }
        }
        let mut characters: Vec<(char, u64)> = counts.into_iter().collect();
        characters.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        characters.into_iter().take(limit).map(|(character, _)| character).collect()
    }
}

/// The vocabulary that begins with `first`, which holds all that the words consist of.
fn join(
    words: &BTreeMap<&String, u64>,
    first: &[String],
    options: &LearningOptions,
) -> Result<Vec<String>, LearningError> {
    let shift = shift(words);
    // What the crate's WordPiece trainer wraps; this one takes counts.
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .continuing_subword_prefix(CONTINUATION.to_owned())
        .vocab_size(options.size)
        .min_frequency(options.min_frequency >> shift)
        .special_tokens(first.iter().map(|token| AddedToken::from(token.as_str(), true)).collect())
        .build();
    let counts = words.iter().map(|(word, count)| (word.as_str().into(), count >> shift));
    let mut model = BPE::default();
    trainer.do_train(&counts.collect(), &mut model).map_err(|error| LearningError::Trainer(error.to_string()))?;
    let mut tokens: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
    tokens.sort_unstable_by_key(|(_, id)| *id);
    Ok(tokens.into_iter().map(|(token, _)| token).collect())
}

/// By how many bits counts have to be shortened: the trainer adds up those of a pair of characters in 32 bits.
fn shift(words: &BTreeMap<&String, u64>) -> u32 {
    let mut pairs: HashMap<(char, char), u64> = HashMap::new();
    for (word, count) in words {
        for pair in word.chars().zip(word.chars().skip(1)) {
            let sum = pairs.entry(pair).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    let largest = pairs.into_values().max().unwrap_or(0);
    (u64::BITS - largest.leading_zeros()).saturating_sub(i32::BITS - 1)
}

#[cfg(test)]
#[path = "learning_tests.rs"]
mod tests;
