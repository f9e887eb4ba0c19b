//! What a log is made of: a log or checkpoint of another identity is refused.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Setting: of how many of the k entries of a position a tail is drawn. There if it is not 0.
pub const TAIL_SAMPLES_KEY: &str = "store.tail_samples";

/// Everything that determines a log's content besides the text: settings (seed, masking, k, …) and teachers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Settings by configuration key, e.g. `masking.probability` → `0.15`.
    pub settings: BTreeMap<String, String>,
    /// Teacher table; copies refer to it by index. Appending a teacher is the one change allowed.
    pub teachers: Vec<TeacherEntry>,
}

/// One row of the teacher table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherEntry {
    /// Name in the configuration.
    pub name: String,
    /// Languages it has copies of.
    pub languages: Vec<String>,
    /// Whether it labels, or lends only its tokenizer.
    pub labels: bool,
    /// Tokens in its tokenizer's vocabulary.
    pub vocabulary_size: u32,
    /// Hash of its tokenizer.
    pub tokenizer_fingerprint: String,
    /// Hash of its weights; empty for a teacher that does not label.
    pub weights_fingerprint: String,
}

impl Identity {
    /// How many of a position's k entries are drawn from the tail ([`crate::Label`]); a setting that is no number counts as 0.
    #[must_use]
    pub fn tail_samples(&self) -> usize {
        self.settings.get(TAIL_SAMPLES_KEY).and_then(|samples| samples.parse().ok()).unwrap_or(0)
    }

    /// What differs between this (stored) identity and the `wanted` one, a line each; empty if a log of
    /// this identity may be continued under the wanted one. Teachers may be appended, never changed.
    #[must_use]
    pub fn differences(&self, wanted: &Identity) -> Vec<String> {
        let mut lines = Vec::new();
        for key in self.settings.keys().chain(wanted.settings.keys().filter(|key| !self.settings.contains_key(*key))) {
            let (stored, new) = (self.settings.get(key), wanted.settings.get(key));
            if stored != new {
                let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".to_owned());
                lines.push(format!("{key}: {} in the log, {} in the configuration", show(stored), show(new)));
            }
        }
        for (index, stored) in self.teachers.iter().enumerate() {
            match wanted.teachers.get(index) {
                None => lines.push(format!("teacher `{}` of the log is missing from the configuration", stored.name)),
                Some(new) => lines.extend(stored.differences(new)),
            }
        }
        lines
    }
}

impl TeacherEntry {
    fn differences(&self, wanted: &TeacherEntry) -> Vec<String> {
        let fields = [
            ("name", &self.name, &wanted.name),
            ("tokenizer", &self.tokenizer_fingerprint, &wanted.tokenizer_fingerprint),
            ("weights", &self.weights_fingerprint, &wanted.weights_fingerprint),
            ("languages", &self.languages.join(" "), &wanted.languages.join(" ")),
            ("labels", &self.labels.to_string(), &wanted.labels.to_string()),
        ];
        fields
            .iter()
            .filter(|(_, stored, new)| stored != new)
            .map(|(field, stored, new)| format!("teacher `{}`: {field} was `{stored}`, is `{new}`", self.name))
            .collect()
    }
}
