//! What every training window saw of the log, and what else a run must remember to repeat itself.
//!
//! A file of JSON lines, one entry a line, appended and made durable *before* what it says takes effect. Each line ends
//! with the CRC-32 of what stands before it: `{"event":"window",…,"crc":"1c291ca3"}`.
//!
//! Because a line is durable before the next one is begun, a crash can spoil at most the last line:
//!
//! | state of the file                          | meaning     | action                                       |
//! | ------------------------------------------ | ----------- | -------------------------------------------- |
//! | every line is whole                        | clean       | —                                            |
//! | the last line alone is broken or unfinished | torn append | cut, kept aside in `journal.torn`, reported  |
//! | a broken line with another line after it   | corruption  | an error that names the line                 |
//!
//! What a cut line would have said never took effect, or took effect in steps that no checkpoint holds; a checkpoint
//! that refers to it is found out by [`Journal::check_reaches`]. After a failed write nothing more is written.

use crate::durable;
use crate::error::TrainerError;
use crate::sampler::{OpenInputs, SamplerState};
use crate::settings::{Settings, SettingsEntry, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{DurablePosition, SequenceNumber};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEntry {
    /// A window was formed.
    Window(WindowEntry),
    /// A step was skipped: its loss or gradient was not finite.
    SkippedStep(SkippedStep),
    /// Training went back to a checkpoint.
    Rollback(Rollback),
    /// The vocabulary grew at its end.
    VocabularyGrowth(VocabularyGrowth),
    /// From here on training has these settings.
    Settings(SettingsEntry),
    /// The journal is that of a release: its first line.
    Branch(Branch),
}

impl JournalEntry {
    /// Whether training that goes on from a checkpoint after `step` steps has to know of it. Windows are looked at apart.
    fn concerns(&self, step: u64) -> bool {
        match self {
            // Whatever their step: windows were formed under them.
            Self::Rollback(_) | Self::Settings(_) => true,
            Self::SkippedStep(skip) => skip.step <= step,
            Self::VocabularyGrowth(growth) => growth.step <= step,
            Self::Window(_) | Self::Branch(_) => false,
        }
    }
}

/// Where a release branches from the trunk. What came before is in the trunk's journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Steps that were done.
    pub step: u64,
    /// The first window that this journal knows.
    pub window: u64,
}

/// A window, before it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowEntry {
    /// Its number.
    pub window: u64,
    /// Where the log was taken to begin; absent from journals of versions before retention, when it began at 0.
    #[serde(default)]
    pub begin: SequenceNumber,
    /// Where the log was taken to end.
    pub durable: DurablePosition,
    /// The oldest entry that was read; absent from journals of versions before retention, where it may be any.
    #[serde(default)]
    pub oldest: SequenceNumber,
    /// The inputs that were open there; absent from journals of versions that did not note them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenInputs>,
    /// The sampler before the window.
    pub state: SamplerState,
}

/// What a window saw.
#[derive(Clone, Debug)]
struct Seen {
    begin: SequenceNumber,
    durable: DurablePosition,
    oldest: SequenceNumber,
    /// Shared with the window before, if they are the same: a run may have millions of windows.
    open: Option<Arc<OpenInputs>>,
}

/// A step without effect on the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedStep {
    /// Its number.
    pub step: u64,
    /// What was not finite.
    pub reason: String,
    /// The examples of its batch.
    pub sequences: Vec<SequenceNumber>,
}

/// Going back to a checkpoint because steps in a row were not finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollback {
    /// The step that was reached.
    pub from_step: u64,
    /// The step of the checkpoint.
    pub to_step: u64,
    /// Examples that are left out from that checkpoint on.
    pub left_out: Vec<SequenceNumber>,
}

/// New teachers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VocabularyGrowth {
    /// The step before which it grew.
    pub step: u64,
    /// Tokens before.
    pub from_size: usize,
    /// Tokens after.
    pub to_size: usize,
    /// Names of the new teachers.
    pub teachers: Vec<String>,
}

/// The journal of a state folder.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None`: it is only looked at.
    file: Option<File>,
    windows: BTreeMap<u64, Seen>,
    /// Before the last window.
    last_state: Option<SamplerState>,
    events: Vec<JournalEntry>,
    settings: Timeline,
    cut_bytes: u64,
    failed: bool,
}

impl Journal {
    /// Opens the journal at `path`, or creates it; cuts a torn last line.
    ///
    /// # Errors
    /// [`TrainerError::Corrupt`] naming the line, and failures to read or write.
    pub fn open(path: &Path) -> Result<Self, TrainerError> {
        let is_new = !path.exists();
        let mut file = OpenOptions::new();
        let file = file.read(true).append(true).create(true).open(path).map_err(TrainerError::io("open", path))?;
        if is_new {
            durable::sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        }
        let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
        let mut journal = Self { file: Some(file), ..Self::empty(path) };
        let valid_bytes = journal.read(&bytes)?;
        if valid_bytes < bytes.len() {
            journal.cut(valid_bytes, &bytes[valid_bytes..])?;
        }
        Ok(journal)
    }

    /// The journal at `path` without touching it: a run may be appending to it. With `returns`, as it was before training went
    /// back to a checkpoint for another time after so many times; but windows that were formed later are known too.
    ///
    /// # Errors
    /// [`TrainerError::Corrupt`] naming the line, and failures to read.
    pub fn view(path: &Path, returns: Option<u64>) -> Result<Self, TrainerError> {
        let bytes = fs::read(path).map_err(TrainerError::io("read", path))?;
        let mut all = Self::empty(path);
        all.read(&bytes)?;
        let Some(returns) = returns else { return Ok(all) };
        let events = std::mem::take(&mut all.events).into_iter();
        all.settings = Timeline::default();
        let mut left = returns;
        let is_known = |event: &JournalEntry| match event {
            JournalEntry::Rollback(_) if left == 0 => false,
            JournalEntry::Rollback(_) => {
                left -= 1;
                true
            }
            _ => true,
        };
        events.take_while(is_known).for_each(|event| all.note(event));
        Ok(all)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            windows: BTreeMap::new(),
            last_state: None,
            events: Vec::new(),
            settings: Timeline::default(),
            cut_bytes: 0,
            failed: false,
        }
    }

    /// The durable position that a window saw, if it was formed before.
    #[must_use]
    pub fn window(&self, window: u64) -> Option<DurablePosition> {
        self.windows.get(&window).map(|seen| seen.durable)
    }

    /// Where the log was taken to begin for a window, if it was formed before.
    #[must_use]
    pub fn begin(&self, window: u64) -> Option<SequenceNumber> {
        self.windows.get(&window).map(|seen| seen.begin)
    }

    /// The oldest entry that a window read, if it was formed before.
    #[must_use]
    pub fn oldest(&self, window: u64) -> Option<SequenceNumber> {
        self.windows.get(&window).map(|seen| seen.oldest)
    }

    /// The window, of those from `window` on, that read the oldest entry, and that entry.
    #[must_use]
    pub fn oldest_from(&self, window: u64) -> Option<(u64, SequenceNumber)> {
        let formed = self.windows.range(window..).map(|(number, seen)| (*number, seen.oldest));
        formed.min_by_key(|(_, oldest)| *oldest)
    }

    /// The sampler before the last window formed, as far as the journal was read when it was opened.
    #[must_use]
    pub fn last_state(&self) -> Option<&SamplerState> {
        self.last_state.as_ref()
    }

    /// The inputs that were open for a window, if it was formed before and they were noted.
    #[must_use]
    pub fn open_inputs(&self, window: u64) -> Option<&OpenInputs> {
        self.windows.get(&window)?.open.as_deref()
    }

    /// The number of the last window formed.
    #[must_use]
    pub fn last_window(&self) -> Option<u64> {
        self.windows.last_key_value().map(|(window, _)| *window)
    }

    /// The settings under which the step is made that comes after `step` steps; `None`: no entry says any (a version before there were such).
    #[must_use]
    pub fn settings_at(&self, step: u64) -> Option<&Settings> {
        self.settings.at_step(step)
    }

    /// The settings under which a window is formed; `None` as before.
    #[must_use]
    pub fn settings_of_window(&self, window: u64) -> Option<&Settings> {
        self.settings.of_window(window)
    }

    /// The settings of the last entry that has any.
    #[must_use]
    pub fn last_settings(&self) -> Option<&Settings> {
        self.settings.last()
    }

    /// The first window that was not formed yet.
    pub(crate) fn next_window(&self) -> u64 {
        self.last_window().map_or_else(|| self.first_window(), |last| last + 1)
    }

    /// The first window that is to be known: 0, but in the journal of a release.
    fn first_window(&self) -> u64 {
        let branch = self.events.iter().find_map(|event| match event {
            JournalEntry::Branch(branch) => Some(branch.window),
            _ => None,
        });
        branch.unwrap_or(0)
    }

    /// Writes to `path` the journal of a release that branches from a checkpoint after `step` steps, which has used the windows
    /// below `windows` and may need those from `first` on.
    ///
    /// # Errors
    /// When this journal cannot be read, or the other one not be written.
    pub fn branch(&self, path: &Path, step: u64, first: u64, windows: u64) -> Result<(), TrainerError> {
        let bytes = fs::read(&self.path).map_err(TrainerError::io("read", &self.path))?;
        // A window is in the journal once, and they are in order: those that are wanted are among the last.
        let mut known = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n').rev() {
            match decode(line).map_err(|reason| TrainerError::corrupt(&self.path, reason))? {
                JournalEntry::Window(entry) if entry.window < first => break,
                JournalEntry::Window(entry) if entry.window < windows => known.push(JournalEntry::Window(entry)),
                _ => {}
            }
        }
        let mut entries = vec![JournalEntry::Branch(Branch { step, window: first })];
        entries.extend(self.events.iter().filter(|event| event.concerns(step)).cloned());
        entries.extend(known.into_iter().rev());
        let lines = entries.iter().map(encode).collect::<serde_json::Result<Vec<String>>>();
        let lines = lines.map_err(|error| TrainerError::corrupt(path, error))?;
        durable::replace(path, lines.concat().as_bytes())
    }

    /// How far the log must reach: beyond what any window saw.
    #[must_use]
    pub fn highest_durable(&self) -> DurablePosition {
        self.windows.values().map(|seen| seen.durable).max().unwrap_or_default()
    }

    /// Entries other than windows, in order.
    #[must_use]
    pub fn events(&self) -> &[JournalEntry] {
        &self.events
    }

    /// Bytes of a torn line that was cut when the journal was opened.
    #[must_use]
    pub fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }

    /// Checks the journal against a checkpoint that has used all windows before `windows`, and the log.
    ///
    /// # Errors
    /// [`TrainerError::Corrupt`] if the journal lacks one of those windows, [`TrainerError::LogBehind`] if the log ends
    /// before what a window saw.
    pub fn check_reaches(&self, windows: u64, durable: DurablePosition) -> Result<(), TrainerError> {
        let first = self.first_window();
        let known = self.next_window();
        if self.windows.len() as u64 != known.saturating_sub(first) {
            return Err(TrainerError::corrupt(&self.path, "windows are missing from it; restore the file"));
        }
        if known < windows {
            let reason =
                format!("it ends after {known} windows, but a checkpoint has used {windows}; restore the file");
            return Err(TrainerError::corrupt(&self.path, reason));
        }
        let needed = self.highest_durable();
        if needed > durable {
            let witness = self.path.display().to_string();
            return Err(TrainerError::LogBehind { durable: durable.end().0, needed: needed.end().0, witness });
        }
        Ok(())
    }

    /// Appends an entry; it is durable when this returns. A window that is there already, with the same durable
    /// position, is not written again.
    ///
    /// # Errors
    /// When it cannot be written, or an earlier one could not; when a window is there with another position.
    pub fn append(&mut self, entry: JournalEntry) -> Result<(), TrainerError> {
        if let JournalEntry::Window(window) = &entry {
            match self.window(window.window) {
                Some(durable) if durable == window.durable => return Ok(()),
                Some(durable) => {
                    let (number, new) = (window.window, window.durable);
                    let reason = format!("window {number} saw the log up to {durable}, not {new}");
                    return Err(TrainerError::corrupt(&self.path, reason));
                }
                None => {}
            }
        }
        if self.failed {
            let reason = "an earlier write to it failed; nothing more is written until a restart";
            return Err(TrainerError::corrupt(&self.path, reason));
        }
        let line = encode(&entry).map_err(|error| TrainerError::corrupt(&self.path, error))?;
        let Some(file) = &mut self.file else {
            return Err(TrainerError::Configuration(format!(
                "{} does not know what comes next, and is only looked at",
                self.path.display()
            )));
        };
        self.failed = true;
        file.write_all(line.as_bytes()).map_err(TrainerError::io("append to", &self.path))?;
        file.sync_data().map_err(TrainerError::io("make durable", &self.path))?;
        self.failed = false;
        self.note(entry);
        Ok(())
    }

    /// Reads all lines; returns how many bytes of them are whole.
    fn read(&mut self, bytes: &[u8]) -> Result<usize, TrainerError> {
        let mut valid_bytes = 0;
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            match decode(line) {
                Ok(entry) => self.note(entry),
                Err(_) if valid_bytes + line.len() == bytes.len() => break,
                Err(reason) => {
                    let reason = format!("line {}: {reason}; restore the file", index + 1);
                    return Err(TrainerError::corrupt(&self.path, reason));
                }
            }
            valid_bytes += line.len();
        }
        Ok(valid_bytes)
    }

    fn note(&mut self, entry: JournalEntry) {
        match entry {
            JournalEntry::Window(entry) => {
                let WindowEntry { window, begin, durable, oldest, open, state } = entry;
                let before = self.windows.last_key_value().and_then(|(_, seen)| seen.open.as_ref());
                let open = open.map(|open| match before {
                    Some(before) if **before == open => Arc::clone(before),
                    _ => Arc::new(open),
                });
                self.windows.insert(window, Seen { begin, durable, oldest, open });
                self.last_state = Some(state);
            }
            event => {
                self.settings.note(&event);
                self.events.push(event);
            }
        }
    }

    fn cut(&mut self, valid_bytes: usize, torn: &[u8]) -> Result<(), TrainerError> {
        let aside = self.path.with_extension("torn");
        durable::replace(&aside, torn)?;
        if let Some(file) = &self.file {
            file.set_len(valid_bytes as u64).map_err(TrainerError::io("cut", &self.path))?;
            file.sync_all().map_err(TrainerError::io("make durable", &self.path))?;
        }
        self.cut_bytes = torn.len() as u64;
        tracing::warn!(
            journal = %self.path.display(), bytes = torn.len(), kept = %aside.display(), "cut a torn last line"
        );
        Ok(())
    }
}

const CRC_DIGITS: usize = 8;
const CRC_KEY: &str = ",\"crc\":\"";
const CRC_END: &str = "\"}\n";

fn encode(entry: &JournalEntry) -> serde_json::Result<String> {
    let mut line = serde_json::to_string(entry)?;
    // The closing brace goes behind the checksum.
    line.pop();
    let crc = crc32fast::hash(line.as_bytes());
    line.push_str(&format!("{CRC_KEY}{crc:0width$x}{CRC_END}", width = CRC_DIGITS));
    Ok(line)
}

fn decode(line: &[u8]) -> Result<JournalEntry, String> {
    let line = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let body = line.strip_suffix(CRC_END).ok_or("it does not end with a checksum")?;
    let (body, digits) = body.rsplit_once(CRC_KEY).ok_or("it does not end with a checksum")?;
    let crc = u32::from_str_radix(digits, 16).map_err(|_| "its checksum is not a number")?;
    if digits.len() != CRC_DIGITS || crc32fast::hash(body.as_bytes()) != crc {
        return Err("its checksum does not match".to_owned());
    }
    serde_json::from_str(&format!("{body}}}")).map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
