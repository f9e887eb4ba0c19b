//! How a corpus's files are to be read.

use crate::IngestError;
use serde::{Deserialize, Serialize};

/// How documents are laid out in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Plain UTF-8 text; see [`TextDocuments`] for where a document ends.
    #[default]
    #[serde(rename = "text")]
    Text,
    /// One JSON object a line, with the document in one of its fields.
    #[serde(rename = "jsonl")]
    JsonLines,
    /// A Parquet file, one document a row, in a column of strings.
    #[serde(rename = "parquet")]
    Parquet,
}

/// What separates the documents of a text file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextDocuments {
    /// One or more empty lines (only ASCII white space counts as empty).
    #[default]
    #[serde(rename = "empty-line")]
    EmptyLine,
    /// Nothing: the file is one document.
    #[serde(rename = "file")]
    File,
    /// The end of the line. Empty lines are no documents.
    #[serde(rename = "line")]
    Line,
}

/// How a text or JSON-lines file is compressed. Parquet compresses inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By the file's first bytes: gzip, bzip2, Zstandard, or none of them.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more bzip2 streams.
    Bzip2,
    /// One or more Zstandard frames, whose window is at most 128 MiB.
    Zstd,
}

/// How the files of a corpus are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// How documents are laid out in a file.
    pub format: Format,
    /// What separates documents; for [`Format::Text`] alone.
    pub documents: TextDocuments,
    /// Field or column with a document's text. `a.b` is field `b` inside of `a`, unless there is a field `a.b`.
    pub text_field: String,
    /// Field or column with a document's own identifier, a string or a number. A document may lack it.
    pub id_field: Option<String>,
    /// Field or column with a document's language, a string. A document without it is rejected.
    pub language_field: Option<String>,
    /// Field with the time at which a document arrived, in milliseconds since 1970; for [`Format::JsonLines`] alone.
    pub arrived_field: Option<String>,
    /// How the files are compressed.
    pub compression: Compression,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Format::default().into()
    }
}

impl From<Format> for FormatOptions {
    /// The format with the defaults of everything else.
    fn from(format: Format) -> Self {
        Self {
            format,
            documents: TextDocuments::default(),
            text_field: "text".to_owned(),
            id_field: None,
            language_field: None,
            arrived_field: None,
            compression: Compression::default(),
        }
    }
}

impl FormatOptions {
    /// Whether the options go together.
    ///
    /// # Errors
    /// [`IngestError::Options`], which names the key of `corpus` and says what to do.
    pub fn validate(&self, corpus: &str) -> Result<(), IngestError> {
        let fail = |problem: String| Err(IngestError::Options(format!("corpus `{corpus}`: {problem}")));
        let fields = [("id_field", &self.id_field), ("language_field", &self.language_field)];
        if self.format == Format::Text {
            if let Some((key, _)) = fields.iter().find(|(_, field)| field.is_some()) {
                return fail(format!("{key} needs format = \"jsonl\" or \"parquet\"; text has no fields"));
            }
        } else if self.documents != TextDocuments::EmptyLine {
            return fail("documents is for format = \"text\" alone; leave it out".to_owned());
        }
        let named = [("text_field", Some(&self.text_field))];
        let named = named.into_iter().chain(fields.map(|(key, field)| (key, field.as_ref())));
        for (key, name) in named {
            if name.is_some_and(|name| name.split('.').any(str::is_empty)) {
                return fail(format!("{key} is not the name of a field: give a name, or `outer.inner`"));
            }
        }
        if self.format == Format::Parquet && !matches!(self.compression, Compression::Auto | Compression::None) {
            return fail(
                "compression is not for format = \"parquet\", which compresses inside; leave it out".to_owned(),
            );
        }
        Ok(())
    }
}
