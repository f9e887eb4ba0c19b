//! The teachers as ingestion sees them: names, languages and tokenizers; never weights.

use model::{ModelError, Tokenizer, Tokens};
use std::sync::{Arc, Mutex, PoisonError};
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use crate::IngestError;
use crate::stretches::Stretches;

/// One row of the teacher table.
#[derive(Clone)]
pub struct IngestTeacher {
    /// Name in the configuration; masks depend on it.
    pub name: String,
    /// Languages it gets a copy of.
    pub languages: Vec<String>,
    /// Whether its copies are labelled; otherwise it lends only its tokenizer.
    pub labels: bool,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
}

/// A teacher's tokenizer with what segmentation and masking need to know of it.
pub(crate) struct TeacherTokenizer {
    /// Index into the teacher table.
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Ids that may stand in for a masked token.
    pub(crate) ordinary_ids: Vec<u32>,
    /// Whether text cut between words tokenises to the parts of what the whole text tokenises to.
    pub(crate) composes: bool,
    /// By id: whether the token continues a word.
    continues: Vec<bool>,
    /// What came before, if the tokenizer composes.
    stretches: Mutex<Stretches>,
}

impl TeacherTokenizer {
    pub(crate) fn new(index: u16, teacher: &IngestTeacher) -> Self {
        let tokenizer = Arc::clone(&teacher.tokenizer);
        let prefix = match tokenizer.inner().get_model() {
            ModelWrapper::WordPiece(model) => model.continuing_subword_prefix.clone(),
            _ => "##".to_owned(),
        };
        let continues = tokenizer
            .vocabulary()
            .iter()
            .map(|token| !prefix.is_empty() && token.len() > prefix.len() && token.starts_with(&prefix))
            .collect();
        Self {
            index,
            name: teacher.name.clone(),
            ordinary_ids: (0..tokenizer.len() as u32)
                .filter(|id| !tokenizer.is_special(*id) && tokenizer.inner().id_to_token(*id).is_some())
                .collect(),
            composes: composes(tokenizer.inner()),
            continues,
            stretches: Mutex::default(),
            tokenizer,
        }
    }

    pub(crate) fn encode(&self, text: &str, language: &str) -> Result<Tokens, IngestError> {
        let encode = |text: &str| self.tokenizer.encode(text);
        let tokens = if self.composes {
            self.stretches.lock().unwrap_or_else(PoisonError::into_inner).tokens(text, encode)
        } else {
            encode(text)
        };
        tokens.map_err(|source| self.failure(language, source))
    }

    /// The same from any number of threads at once, without a memory of what came before.
    pub(crate) fn encode_alone(&self, text: &str, language: &str) -> Result<Tokens, IngestError> {
        self.tokenizer.encode(text).map_err(|source| self.failure(language, source))
    }

    fn failure(&self, language: &str, source: ModelError) -> IngestError {
        IngestError::Tokenise { language: language.to_owned(), teacher: self.name.clone(), source: Box::new(source) }
    }

    pub(crate) fn continues_word(&self, id: u32) -> bool {
        self.continues.get(id as usize).copied().unwrap_or(false)
    }
}

/// BERT's normaliser works character by character (accents: within one word), its pre-tokenizer cuts at white
/// space and around punctuation, and WordPiece sees one word at a time: cutting between words changes nothing,
/// unless an added token reaches across such a cut or looks at its neighbours.
fn composes(tokenizer: &tokenizers::Tokenizer) -> bool {
    matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_))
        && matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)))
        && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            let alone = !token.single_word && !token.lstrip && !token.rstrip;
            alone && !token.content.contains(char::is_whitespace)
        })
}
