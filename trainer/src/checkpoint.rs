//! Checkpoints: `step-<n>/`, each one atomic unit from which training goes on bit for bit.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `config.json`, `model.safetensors` | the student, as transformers would load it |
//! | `optimizer.safetensors` | `first.<name>` and `second.<name>`: AdamW's moments |
//! | `trainer.json` | [`TrainerState`]: step, place in the data, counters, and what the run was configured as |
//! | `manifest.json` | size and SHA-256 of each of the others |
//!
//! A checkpoint is written under another name (`.partial-…`), every file and the folder are made durable, and it is renamed
//! last; so a folder called `step-<n>` is complete. One that is replaced bears the name `.replaced-step-<n>` until the new
//! one is in place. What a crash leaves behind is removed, or put back, when the folder is opened. A checkpoint that does not
//! match its manifest is reported and passed over for the one before it; if none is left, that is
//! an error, never a fresh start.

use crate::TrainerError;
use crate::copy_stream::StreamState;
use crate::durable;
use crate::optimiser::AdamW;
use crate::student::Student;
use candle_core::Device;
use model::{Configuration, Layout, Numbers, Parameters};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

const PARTIAL: &str = ".partial-";
const REPLACED: &str = ".replaced-";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "trainer.json";
const OPTIMISER: &str = "optimizer.safetensors";
const MODEL: &str = "model.safetensors";
const CONFIGURATION: &str = "config.json";

/// The folder of checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// Everything but the tensors that training needs to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// The last step after which the student was evaluated.
    pub evaluated: Option<u64>,
    /// Optimiser updates made: steps but for those that were skipped.
    pub updates: u64,
    /// Steps skipped in a row, up to this one, because loss or gradient was not finite.
    pub skipped_in_a_row: u32,
    /// Times that training had gone back to a checkpoint before this one was written.
    pub rollbacks: u64,
    /// Place in the data.
    pub stream: StreamState,
    /// Sums since the start.
    pub totals: Totals,
    /// What the run is configured as, as far as a checkpoint depends on it: key → value.
    pub identity: BTreeMap<String, String>,
    /// Tokens of the union vocabulary.
    pub vocabulary_size: usize,
    /// SHA-256 of those tokens.
    pub vocabulary_fingerprint: String,
}

/// Sums since the start of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens trained on, `[CLS]` and `[SEP]` included.
    pub tokens: u64,
    /// Masked positions trained on.
    pub masked_positions: u64,
    /// Steps skipped because loss or gradient was not finite.
    pub skipped_steps: u64,
    /// Floating-point operations of training. Beyond what an integer holds in a large run; 0 of steps made by earlier versions.
    #[serde(default)]
    pub train_flops: f64,
    /// Floating-point operations of the teachers, for the labels that were trained on.
    #[serde(default)]
    pub teacher_flops: f64,
}

/// A checkpoint, read and checked.
pub struct Loaded {
    /// Its folder.
    pub path: PathBuf,
    /// All but the tensors.
    pub state: TrainerState,
    /// The student's shape.
    pub configuration: Configuration,
    /// Its weights.
    pub parameters: Parameters,
    /// The optimiser's state, in the order of the parameters' names.
    pub moments: Vec<Moments>,
}

/// One parameter's part of the optimiser's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Hugging Face name of the parameter.
    pub name: String,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// The optimiser after `updates` updates, from the `moments` of all parameters of `layout`.
#[must_use]
pub fn optimiser(layout: &Layout, updates: u64, moments: &[Moments]) -> AdamW {
    let mut optimiser = AdamW::new(layout.length());
    optimiser.updates = updates;
    let by_name: BTreeMap<&str, &Moments> = moments.iter().map(|moments| (moments.name.as_str(), moments)).collect();
    for slot in layout.slots() {
        if let Some(moments) = by_name.get(slot.name.as_str()) {
            optimiser.first[slot.range.clone()].copy_from_slice(&moments.first);
            optimiser.second[slot.range.clone()].copy_from_slice(&moments.second);
        }
    }
    optimiser
}

impl Checkpoints {
    /// Opens (and creates) `folder`, and removes what an interrupted write left there; a checkpoint that was about to be
    /// replaced is put back.
    ///
    /// # Errors
    /// When the folder cannot be created, read or cleaned.
    pub fn open(folder: &Path) -> Result<Self, TrainerError> {
        durable::create_folder(folder)?;
        for name in names(folder)? {
            let path = folder.join(&name);
            let replaced = name.strip_prefix(REPLACED).map(|name| folder.join(name));
            match replaced {
                Some(original) if !original.exists() => {
                    fs::rename(&path, &original).map_err(TrainerError::io("put back", &original))?;
                    durable::sync_folder(folder)?;
                }
                Some(_) => remove_folder(&path)?,
                None if name.starts_with(PARTIAL) => remove_folder(&path)?,
                None => {}
            }
        }
        Ok(Self::at(folder))
    }

    /// The same without touching anything: to look at the checkpoints of a run that may be going on.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Steps of the checkpoints, ascending.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, TrainerError> {
        let mut steps: Vec<u64> =
            names(&self.folder)?.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of the checkpoint after `step`.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Writes a checkpoint, unless the same one is there. When it returns, the checkpoint is durable.
    ///
    /// # Errors
    /// When it cannot be written; the folder then holds what it held before.
    pub fn write(&self, student: &Student, optimiser: &AdamW, state: &TrainerState) -> Result<PathBuf, TrainerError> {
        let path = self.path(state.step);
        if path.exists() && read_state(&path).is_ok_and(|stored| stored == *state) && verify(&path).is_ok() {
            return Ok(path);
        }
        let partial = self.folder.join(format!("{PARTIAL}step-{}", state.step));
        let written =
            write_files(&partial, student, optimiser, state).and_then(|()| self.put_in_place(&partial, state.step));
        if written.is_err() {
            // Best effort: the disk may be full, and what is left behind is removed at the next start anyway.
            let _ = fs::remove_dir_all(&partial);
        }
        written.map(|()| path)
    }

    /// Gives what was written to `partial` the name of the checkpoint after `step`. One that has the name already is put
    /// aside, and removed when the new one is in place.
    fn put_in_place(&self, partial: &Path, step: u64) -> Result<(), TrainerError> {
        let (path, replaced) = (self.path(step), self.folder.join(format!("{REPLACED}step-{step}")));
        let replaces = path.exists();
        if replaces {
            if replaced.exists() {
                remove_folder(&replaced)?;
            }
            fs::rename(&path, &replaced).map_err(TrainerError::io("replace", &path))?;
        }
        if let Err(error) = fs::rename(partial, &path) {
            if replaces {
                // Best effort: the first error is the one to report, and the next start puts it back too.
                let _ = fs::rename(&replaced, &path);
            }
            return Err(TrainerError::io("put in place", &path)(error));
        }
        durable::sync_folder(&self.folder)?;
        if replaces { remove_folder(&replaced) } else { Ok(()) }
    }

    /// Removes all but the newest `keep` checkpoints and those for which `needed` says so.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, keep: usize, needed: impl Fn(u64) -> bool) -> Result<(), TrainerError> {
        let steps = self.steps()?;
        let surplus = steps.len().saturating_sub(keep.max(1));
        steps[..surplus].iter().filter(|step| !needed(**step)).try_for_each(|step| self.remove(*step))
    }

    /// Removes the checkpoint after `step`.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, step: u64) -> Result<(), TrainerError> {
        // Renamed first: half a checkpoint must never have a checkpoint's name.
        let (path, partial) = (self.path(step), self.folder.join(format!("{PARTIAL}remove-{step}")));
        fs::rename(&path, &partial).map_err(TrainerError::io("remove", &path))?;
        durable::sync_folder(&self.folder)?;
        remove_folder(&partial)
    }

    /// The state of the checkpoint after `step`.
    ///
    /// # Errors
    /// [`TrainerError::Corrupt`] if it is damaged, or there is none; failures to read.
    pub(crate) fn state(&self, step: u64) -> Result<TrainerState, TrainerError> {
        read_state(&self.path(step))
    }

    /// The state of the oldest checkpoint; one whose state is damaged cannot be gone back to. `None`: there is no checkpoint.
    ///
    /// # Errors
    /// When a state cannot be read.
    pub fn oldest_state(&self) -> Result<Option<TrainerState>, TrainerError> {
        for step in self.steps()? {
            match read_state(&self.path(step)) {
                Err(TrainerError::Corrupt { .. }) => {}
                state => return state.map(Some),
            }
        }
        Ok(None)
    }

    /// Reads the newest valid checkpoint whose state `usable` accepts. `None`: there is no checkpoint that it accepts.
    ///
    /// # Errors
    /// When there are checkpoints but all are damaged.
    pub fn newest(&self, usable: impl Fn(&TrainerState) -> bool) -> Result<Option<Loaded>, TrainerError> {
        self.find(usable, load)
    }

    /// Puts the newest valid checkpoint whose state `usable` accepts into `other` too, durably, and returns its state. The files
    /// are the same ones where the file system can do that: they are never written again. `None`: there is no such checkpoint.
    ///
    /// # Errors
    /// When all checkpoints are damaged, or `other` cannot be written.
    pub fn share_newest(
        &self,
        usable: impl Fn(&TrainerState) -> bool,
        other: &Self,
    ) -> Result<Option<TrainerState>, TrainerError> {
        self.find(usable, |path, state| {
            verify(path)?;
            let to = other.path(state.step);
            fs::create_dir(&to).map_err(TrainerError::io("create", &to))?;
            for name in names(path)? {
                let (from, to) = (path.join(&name), to.join(&name));
                if fs::hard_link(&from, &to).is_err() {
                    fs::copy(&from, &to).map_err(TrainerError::io("copy", &from))?;
                    let file = File::open(&to).map_err(TrainerError::io("open", &to))?;
                    file.sync_all().map_err(TrainerError::io("make durable", &to))?;
                }
            }
            durable::sync_folder(&to)?;
            durable::sync_folder(&other.folder)?;
            Ok(state)
        })
    }

    /// What `read` makes of the newest valid checkpoint whose state `usable` accepts; those that it finds damaged are passed over.
    fn find<T>(
        &self,
        usable: impl Fn(&TrainerState) -> bool,
        read: impl Fn(&Path, TrainerState) -> Result<T, TrainerError>,
    ) -> Result<Option<T>, TrainerError> {
        let mut damaged = None;
        for step in self.steps()?.into_iter().rev() {
            let path = self.path(step);
            match read_state(&path)
                .and_then(|state| if usable(&state) { read(&path, state).map(Some) } else { Ok(None) })
            {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // Removed meanwhile, by the run that is looked at.
                Err(_) if !path.exists() => {}
                Err(error @ (TrainerError::Corrupt { .. } | TrainerError::Model(_))) => {
                    tracing::warn!(%error, "a checkpoint is damaged; trying the one before it");
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(None), Err)
    }
}

fn remove_folder(path: &Path) -> Result<(), TrainerError> {
    fs::remove_dir_all(path).map_err(TrainerError::io("remove", path))
}

fn names(folder: &Path) -> Result<Vec<String>, TrainerError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainerError::io("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(TrainerError::io("read", folder))?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

// --- writing -------------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

const FORMAT: u32 = 1;

fn write_files(partial: &Path, student: &Student, optimiser: &AdamW, state: &TrainerState) -> Result<(), TrainerError> {
    if partial.exists() {
        remove_folder(partial)?;
    }
    fs::create_dir(partial).map_err(TrainerError::io("create", partial))?;
    write_json(&partial.join(CONFIGURATION), &student.configuration().to_hugging_face())?;
    student.layout().save_safetensors(student.arena(), &partial.join(MODEL))?;
    store::pulse::beat();
    write_moments(&partial.join(OPTIMISER), student.layout(), optimiser)?;
    store::pulse::beat();
    write_json(&partial.join(STATE), state)?;
    let mut files = BTreeMap::new();
    for name in [CONFIGURATION, MODEL, OPTIMISER, STATE] {
        files.insert(name.to_owned(), digest(&partial.join(name))?);
        store::pulse::beat();
    }
    write_json(&partial.join(MANIFEST), &Manifest { format: FORMAT, files })?;
    durable::sync_folder(partial)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainerError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| TrainerError::io("write", path)(error.into()))?;
    text.push(b'\n');
    durable::replace(path, &text)
}

fn write_moments(path: &Path, layout: &Layout, optimiser: &AdamW) -> Result<(), TrainerError> {
    let views = layout.slots().iter().flat_map(|slot| {
        let both = [("first", &optimiser.first), ("second", &optimiser.second)];
        both.map(|(moment, arena)| {
            (format!("{moment}.{}", slot.name), Numbers::new(&arena[slot.range.clone()], vec![slot.range.len()]))
        })
    });
    let failed = |error: safetensors::SafeTensorError| TrainerError::io("write", path)(std::io::Error::other(error));
    safetensors::serialize_to_file(views, None, path).map_err(failed)?;
    let file = File::open(path).map_err(TrainerError::io("open", path))?;
    file.sync_all().map_err(TrainerError::io("make durable", path))
}

// --- reading -------------------------------------------------------------------------------------------------------

fn load(path: &Path, state: TrainerState) -> Result<Loaded, TrainerError> {
    verify(path)?;
    let configuration = Configuration::load(path)?;
    let parameters = Parameters::load(path, &configuration, &Device::Cpu)?;
    let moments = read_moments(&path.join(OPTIMISER), &parameters)?;
    Ok(Loaded { path: path.to_owned(), state, configuration, parameters, moments })
}

fn verify(path: &Path) -> Result<(), TrainerError> {
    let manifest_path = path.join(MANIFEST);
    let manifest: Manifest = parse(&manifest_path, &read(&manifest_path)?)?;
    if manifest.format != FORMAT {
        let reason = format!("format {} of checkpoints; this program reads format {FORMAT}", manifest.format);
        return Err(TrainerError::corrupt(&manifest_path, reason));
    }
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        let found = digest(&file)?;
        if found != *expected {
            let reason = format!("it should have {expected:?}, it has {found:?}");
            return Err(TrainerError::corrupt(&file, reason));
        }
    }
    match [CONFIGURATION, MODEL, OPTIMISER, STATE].iter().find(|name| !manifest.files.contains_key(**name)) {
        Some(name) => Err(TrainerError::corrupt(&manifest_path, format!("it does not list {name}"))),
        None => Ok(()),
    }
}

fn read_state(path: &Path) -> Result<TrainerState, TrainerError> {
    let path = path.join(STATE);
    parse(&path, &read(&path)?)
}

fn read_moments(path: &Path, parameters: &Parameters) -> Result<Vec<Moments>, TrainerError> {
    let bytes = read(path)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| TrainerError::corrupt(path, error))?;
    let numbers = |name: String, count: usize| -> Result<Vec<f32>, TrainerError> {
        let view = tensors.tensor(&name).map_err(|error| TrainerError::corrupt(path, error))?;
        let (numbers, rest) = view.data().as_chunks::<4>();
        if view.dtype() != Dtype::F32 || numbers.len() != count || !rest.is_empty() {
            return Err(TrainerError::corrupt(path, format!("`{name}` does not fit the model")));
        }
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    let moments = parameters.iter().map(|(name, tensor)| {
        let count = tensor.elem_count();
        let first = numbers(format!("first.{name}"), count)?;
        let second = numbers(format!("second.{name}"), count)?;
        Ok(Moments { name: name.to_owned(), first, second })
    });
    moments.collect()
}

/// Reads a file that must be there: a checkpoint without it is damaged.
fn read(path: &Path) -> Result<Vec<u8>, TrainerError> {
    fs::read(path).map_err(|error| missing_or(path, error))
}

fn missing_or(path: &Path, error: std::io::Error) -> TrainerError {
    match error.kind() {
        std::io::ErrorKind::NotFound => TrainerError::corrupt(path, "the file is missing"),
        _ => TrainerError::io("read", path)(error),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, TrainerError> {
    serde_json::from_slice(bytes).map_err(|error| TrainerError::corrupt(path, error))
}

/// Size and hash of a file that must be there, which is never in memory as a whole.
fn digest(path: &Path) -> Result<FileEntry, TrainerError> {
    let failed = |error| missing_or(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(FileEntry { bytes, sha256: hexadecimal(&hash.finalize()) });
        }
        hash.update(&buffer[..count]);
        bytes += count as u64;
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
