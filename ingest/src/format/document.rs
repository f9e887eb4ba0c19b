//! A document of a file, or why it is none.

/// Documents above this size are rejected: nothing downstream has to hold more.
pub(crate) const DOCUMENT_LIMIT_BYTES: usize = 8 << 20;

const EXCERPT_BYTES: usize = 512;
/// As long as the longest example.
const KEPT_TEXT_BYTES: usize = 64 << 10;

/// One document of a file: its text, or why it has none.
#[derive(Debug)]
pub(crate) struct Document {
    /// Where it begins in the decompressed file; its row for Parquet.
    pub(crate) offset_bytes: u64,
    /// What its `id_field` says.
    pub(crate) id: Option<String>,
    /// What its `language_field` says; a rejected document may have lost it.
    pub(crate) language: Option<String>,
    /// What its `arrived_field` says, in milliseconds since 1970.
    pub(crate) arrived_ms: Option<u64>,
    pub(crate) text: Result<String, Rejection>,
}

/// A document that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Size of the document in the file.
    pub(crate) size_bytes: u64,
    /// Its first bytes, readable.
    pub(crate) excerpt: String,
    /// Its language, if known.
    pub(crate) language: Option<String>,
    /// Its text, if it is one and not too long to be kept.
    pub(crate) text: Option<String>,
}

/// Why a document, or a part of one, makes no example. The names are metric labels and log entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    NotUtf8,
    NulByte,
    TooLarge,
    MalformedJson,
    MissingText,
    MissingLanguage,
    BrokenCompression,
    BrokenParquet,
    UnknownLanguage,
    OtherLanguage,
    NoText,
    Duplicate,
    NothingToMask,
    MostlyUnknown,
    TooManyTokens,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::NulByte => "nul_byte",
            Self::TooLarge => "too_large",
            Self::MalformedJson => "malformed_json",
            Self::MissingText => "missing_text",
            Self::MissingLanguage => "missing_language",
            Self::BrokenCompression => "broken_compression",
            Self::BrokenParquet => "broken_parquet",
            Self::UnknownLanguage => "unknown_language",
            Self::OtherLanguage => "other_language",
            Self::NoText => "no_text",
            Self::Duplicate => "duplicate",
            Self::NothingToMask => "nothing_to_mask",
            Self::MostlyUnknown => "mostly_unknown",
            Self::TooManyTokens => "too_many_tokens",
        }
    }
}

impl Rejection {
    /// `bytes` is the document, or as much of it as there is.
    pub(crate) fn new(reason: Reason, detail: String, bytes: &[u8]) -> Self {
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]).into_owned();
        Self { reason, detail, size_bytes: bytes.len() as u64, excerpt, language: None, text: None }
    }

    /// Of a document that has nothing but white space.
    pub(crate) fn no_text(text: &str) -> Self {
        Self::new(Reason::NoText, "there is no text in it".to_owned(), text.as_bytes())
    }

    /// Keeps the text, so that it can be tried again from the quarantine alone.
    pub(crate) fn with_text(mut self, text: &str) -> Self {
        self.text = (text.len() <= KEPT_TEXT_BYTES).then(|| text.to_owned());
        self
    }

    pub(crate) fn with_language(mut self, language: Option<String>) -> Self {
        self.language = language;
        self
    }
}

/// `bytes` unless the document, `size_bytes` long of which they are the beginning, is too large.
pub(super) fn accept(bytes: Vec<u8>, size_bytes: u64) -> Result<Vec<u8>, Rejection> {
    if size_bytes <= DOCUMENT_LIMIT_BYTES as u64 {
        return Ok(bytes);
    }
    Err(too_large(size_bytes, &bytes))
}

/// A document is `size_bytes` long, of which `bytes` are the beginning.
pub(super) fn too_large(size_bytes: u64, bytes: &[u8]) -> Rejection {
    let detail = format!("the document has {size_bytes} bytes, the limit is {DOCUMENT_LIMIT_BYTES}");
    Rejection { size_bytes, ..Rejection::new(Reason::TooLarge, detail, bytes) }
}

pub(super) fn decode(bytes: Vec<u8>) -> Result<String, Rejection> {
    if let Some(at) = memchr::memchr(0, &bytes) {
        return Err(Rejection::new(Reason::NulByte, format!("NUL at byte {at} of the document"), &bytes));
    }
    String::from_utf8(bytes).map_err(|error| {
        let detail = format!("invalid UTF-8 at byte {} of the document", error.utf8_error().valid_up_to());
        Rejection::new(Reason::NotUtf8, detail, error.as_bytes())
    })
}
