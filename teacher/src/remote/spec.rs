//! Which teachers a run means: what a worker is held against before it labels.

use super::wire::PROTOCOL;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};

/// A run, as its workers know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Of the messages.
    pub protocol: u32,
    /// Version of the coordinator's program.
    pub version: String,
    /// Teachers that workers may label for.
    pub teachers: Vec<TeacherSpec>,
    /// Who says so. The run belongs to whoever said so last.
    #[serde(default)]
    pub coordinator: CoordinatorStart,
}

/// A start of a coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorStart {
    /// When: nanoseconds since 1970. Tells it from every other.
    pub life: u64,
    /// Its process and machine, for people.
    pub who: String,
}

impl CoordinatorStart {
    /// This process, now.
    #[must_use]
    pub fn now() -> Self {
        let life = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { life, who: format!("process {} on {}", std::process::id(), host.trim_end()) }
    }
}

/// A teacher, and how it labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherSpec {
    /// Name in the configuration.
    pub name: String,
    /// Index in the log's teacher table.
    pub index: u16,
    /// Hash of the weights.
    pub weights: String,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Labels kept per masked position.
    pub top_k: usize,
    /// How many of them are drawn from the tail.
    pub tail_samples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl RunSpec {
    /// A run of this program, whose coordinator starts now.
    #[must_use]
    pub fn new(teachers: Vec<TeacherSpec>) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { protocol: PROTOCOL, version, teachers, coordinator: CoordinatorStart::now() }
    }

    /// The teacher of this name.
    ///
    /// # Errors
    /// When the run has none, or speaks another protocol: what is to be done.
    pub fn teacher(&self, name: &str) -> Result<&TeacherSpec, String> {
        if self.protocol != PROTOCOL {
            return Err(format!(
                "the coordinator ({}) speaks version {} of the protocol, this worker ({}) version {PROTOCOL}; install the same program on both",
                self.version,
                self.protocol,
                env!("CARGO_PKG_VERSION")
            ));
        }
        self.teachers.iter().find(|teacher| teacher.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.teachers.iter().map(|teacher| teacher.name.as_str()).collect();
            format!("the run has no teacher `{name}` for workers; it has: {}", names.join(", "))
        })
    }
}

impl TeacherSpec {
    /// Tells this teacher, and how it labels, from any other.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let Self { name, index, weights, tokenizer, top_k, tail_samples, seed } = self;
        let text = format!("{name:?} {index} {weights} {tokenizer} {top_k} {tail_samples} {seed}");
        let whole: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let mut digest = [0; 16];
        digest.copy_from_slice(&whole[..16]);
        digest
    }

    /// How a worker's teacher, with hashes of weights and tokenizer, differs from the one that is meant; `None`: it is that one.
    #[must_use]
    pub fn difference(&self, weights: &str, tokenizer: &str) -> Option<String> {
        let hashes = [("weights", self.weights.as_str(), weights), ("tokenizer", self.tokenizer.as_str(), tokenizer)];
        let differing = hashes.iter().filter(|(_, meant, found)| meant != found);
        let lines: Vec<String> =
            differing.map(|(what, meant, found)| format!("its {what} are {found}, the run's {meant}")).collect();
        (!lines.is_empty()).then(|| format!("this is not the teacher `{}` of the run: {}", self.name, lines.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_teacher_is_refused_with_what_differs() {
        let teacher = TeacherSpec {
            name: "en".to_owned(),
            index: 0,
            weights: "aa".to_owned(),
            tokenizer: "bb".to_owned(),
            top_k: 8,
            tail_samples: 0,
            seed: 1,
        };
        assert_eq!(teacher.difference("aa", "bb"), None);
        assert_ne!(teacher.digest(), TeacherSpec { top_k: 16, ..teacher.clone() }.digest());
        assert!(teacher.difference("aa", "cc").is_some_and(|text| text.contains("tokenizer are cc, the run's bb")));
        let run = RunSpec::new(vec![teacher]);
        assert!(run.teacher("en").is_ok());
        assert!(run.teacher("de").is_err_and(|text| text.contains("`de`") && text.contains("it has: en")));
        let other = RunSpec { protocol: PROTOCOL + 1, ..run };
        assert!(other.teacher("en").is_err_and(|text| text.contains("install the same program")));
    }
}
