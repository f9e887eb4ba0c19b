//! Weight files as users have them: safetensors (whole or sharded) or PyTorch's pickles, in three number
//! formats and under several generations of names.

use crate::{Architecture, ModelError};
use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Tried in this order. An index lists the files ("shards") over which a large checkpoint is spread.
const FILES: [(&str, Format); 4] = [
    ("model.safetensors", Format::Safetensors),
    ("model.safetensors.index.json", Format::Safetensors),
    ("pytorch_model.bin", Format::Pickle),
    ("pytorch_model.bin.index.json", Format::Pickle),
];

/// What safetensors itself allows a header.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;

/// SHA-256 (hexadecimal) of the bytes of a model's weights: of the one file, or of all shards in the order
/// of their names.
///
/// # Errors
/// When the folder has no weights or they cannot be read.
pub fn fingerprint_weights(dir: &Path) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    for path in find(dir)?.files {
        let failed = |source| ModelError::Read { path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// Fails if a weights file is there only in part, as an interrupted download or copy leaves it: told by its header alone. Pickles are looked at when they are
/// loaded.
///
/// # Errors
/// When the folder has no weights, they cannot be read, or a file has another size than its header says.
pub fn check_weights(dir: &Path) -> Result<(), ModelError> {
    let found = find(dir)?;
    let files = found.files.iter().filter(|_| found.format == Format::Safetensors);
    files.into_iter().try_for_each(|path| check_size(path))
}

/// Compares the size of a safetensors file with what its header says: 8 bytes of length, the header, the tensors.
fn check_size(path: &Path) -> Result<(), ModelError> {
    let failed = |source| ModelError::Read { path: path.to_owned(), source };
    let malformed = |reason: String| ModelError::Malformed { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let short = |least: u64| {
        malformed(format!(
            "it is incomplete: it has {bytes} bytes, and should have {least} or more; get or copy it once more"
        ))
    };
    let mut length = [0; 8];
    if bytes < 8 {
        return Err(short(8));
    }
    file.read_exact(&mut length).map_err(failed)?;
    let header = u64::from_le_bytes(length);
    let begin = header.saturating_add(8);
    if header > HEADER_LIMIT_BYTES {
        return Err(malformed("it is no safetensors file: its header would be too long".to_owned()));
    }
    if bytes < begin {
        return Err(short(begin));
    }
    let mut text = Vec::new();
    file.take(header).read_to_end(&mut text).map_err(failed)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&text).map_err(|error| malformed(format!("its header is no JSON: {error}")))?;
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64();
    let end = header.values().filter_map(end).max().unwrap_or(0);
    let whole = begin.saturating_add(end);
    match bytes {
        _ if bytes < whole => {
            Err(malformed(format!("it is incomplete: it has {bytes} bytes of {whole}; get or copy it once more")))
        }
        _ if bytes > whole => Err(malformed(format!("it has {bytes} bytes, and its header speaks of {whole}"))),
        _ => Ok(()),
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The tensors of one checkpoint under their canonical names, read one at a time.
pub(crate) struct Checkpoint {
    /// The weights file, or the index of the shards: what messages name.
    pub(crate) path: PathBuf,
    files: Vec<Opened>,
    tensors: BTreeMap<String, Place>,
}

struct Place {
    file: usize,
    name: String,
}

struct Opened {
    path: PathBuf,
    content: Content,
}

enum Content {
    Safetensors(Vec<u8>),
    Pickle(PthTensors),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Pickle,
}

struct Found {
    path: PathBuf,
    format: Format,
    files: Vec<PathBuf>,
}

impl Checkpoint {
    /// Opens the weights in `dir`.
    pub(crate) fn open(dir: &Path, architecture: Architecture) -> Result<Self, ModelError> {
        let found = find(dir)?;
        let mut checkpoint = Self { path: found.path, files: Vec::new(), tensors: BTreeMap::new() };
        for path in found.files {
            checkpoint.add_file(path, found.format, architecture)?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf, format: Format, architecture: Architecture) -> Result<(), ModelError> {
        let malformed = |reason: String| ModelError::Malformed { path: path.clone(), reason };
        let (content, names) = match format {
            Format::Safetensors => {
                check_size(&path)?;
                let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
                let header = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
                let names: Vec<String> = header.names().into_iter().map(str::to_owned).collect();
                (Content::Safetensors(bytes), names)
            }
            Format::Pickle => {
                // Opened first, so that a file which cannot be read is not taken for one in an old format.
                File::open(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
                let tensors = PthTensors::new(&path, None).map_err(|error| {
                    malformed(format!(
                        "not a checkpoint in the zip format of PyTorch 1.6 and later ({error}); load it with \
                         transformers and save it again as safetensors"
                    ))
                })?;
                let names = tensors.tensor_infos().keys().cloned().collect();
                (Content::Pickle(tensors), names)
            }
        };
        for name in names {
            let place = Place { file: self.files.len(), name: name.clone() };
            // A name that is canonical already wins over an old spelling of it, whatever their order in the file.
            let canonical = canonical_name(&name, architecture);
            if name == canonical || !self.tensors.contains_key(&canonical) {
                self.tensors.insert(canonical, place);
            }
        }
        self.files.push(Opened { path, content });
        Ok(())
    }

    /// Whether the checkpoint has a tensor of this canonical name.
    pub(crate) fn contains(&self, canonical: &str) -> bool {
        self.tensors.contains_key(canonical)
    }

    /// Reads a tensor as float32, on the CPU.
    pub(crate) fn read(&self, canonical: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let Some(Place { file, name }) = self.tensors.get(canonical) else {
            return Err(ModelError::MissingTensor {
                path: self.path.clone(),
                name: canonical.to_owned(),
                expected: expected.to_vec(),
                hint: self.hint(canonical).to_owned(),
            });
        };
        let Opened { path, content } = &self.files[*file];
        let (found, tensor) = match content {
            Content::Safetensors(bytes) => read_safetensors(path, bytes, name)?,
            Content::Pickle(tensors) => read_pickle(path, tensors, name)?,
        };
        if found != expected {
            let (path, name, expected) = (path.clone(), name.clone(), expected.to_vec());
            return Err(ModelError::Shape { path, name, expected, found });
        }
        Ok(tensor)
    }

    fn hint(&self, canonical: &str) -> &'static str {
        let head = ["cls.", "generator_predictions.", "generator_lm_head."];
        let is_head = |name: &str| head.iter().any(|prefix| name.starts_with(prefix));
        if is_head(canonical) && !self.tensors.keys().any(|name| is_head(name)) {
            "; the checkpoint has no masked-language-model head at all: is it an encoder alone, or a discriminator?"
        } else {
            ""
        }
    }
}

/// The name under which today's transformers keeps the tensor: LayerNorms had `gamma` and `beta` once, and
/// an encoder that was saved alone has no `bert.` or `electra.` before its names.
fn canonical_name(name: &str, architecture: Architecture) -> String {
    let (stem, leaf) = match name.rsplit_once('.') {
        Some((stem, "gamma")) => (stem, "weight"),
        Some((stem, "beta")) => (stem, "bias"),
        Some(parts) => parts,
        None => return name.to_owned(),
    };
    let base = match architecture {
        Architecture::Bert => "bert.",
        Architecture::ElectraGenerator => "electra.",
    };
    let of_the_encoder = ["embeddings.", "encoder.", "embeddings_project", "pooler."];
    let prefix = if of_the_encoder.iter().any(|part| stem.starts_with(part)) { base } else { "" };
    format!("{prefix}{stem}.{leaf}")
}

fn find(dir: &Path) -> Result<Found, ModelError> {
    for (name, format) in FILES {
        let path = dir.join(name);
        if path.is_file() {
            let files = if name.ends_with(".index.json") { shards(dir, &path)? } else { vec![path.clone()] };
            return Ok(Found { path, format, files });
        }
    }
    // A folder that is not there is another mistake than one without weights.
    std::fs::read_dir(dir).map_err(|source| ModelError::Read { path: dir.to_path_buf(), source })?;
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    Err(ModelError::NoWeights { dir: dir.to_path_buf(), looked_for: names.join(", ") })
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let malformed = |reason: &str| ModelError::Malformed { path: index.to_path_buf(), reason: reason.to_owned() };
    let text =
        std::fs::read_to_string(index).map_err(|source| ModelError::Read { path: index.to_path_buf(), source })?;
    let value: Value = serde_json::from_str(&text).map_err(|error| malformed(&error.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| malformed("it has no `weight_map`"))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        let name = name.as_str().ok_or_else(|| malformed("`weight_map` must map names to file names"))?;
        if Path::new(name).file_name().and_then(|file| file.to_str()) != Some(name) {
            return Err(malformed(&format!("`{name}` is not the name of a file beside the index")));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

fn read_safetensors(path: &Path, bytes: &[u8], name: &str) -> Result<(Vec<usize>, Tensor), ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_path_buf(), reason };
    let header = SafeTensors::deserialize(bytes).map_err(|error| malformed(error.to_string()))?;
    let view = header.tensor(name).map_err(|error| malformed(format!("`{name}`: {error}")))?;
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
        other => {
            return Err(malformed(format!("`{name}` holds {other:?}; expected float32, float16 or bfloat16")));
        }
    };
    Ok((view.shape().to_vec(), Tensor::from_vec(values, view.shape(), &Device::Cpu)?))
}

fn read_pickle(path: &Path, tensors: &PthTensors, name: &str) -> Result<(Vec<usize>, Tensor), ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_path_buf(), reason };
    let tensor = tensors
        .get(name)
        .map_err(|error| malformed(format!("`{name}`: {error}")))?
        .ok_or_else(|| malformed(format!("`{name}` cannot be read")))?;
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => {}
        other => {
            return Err(malformed(format!("`{name}` holds {other:?}; expected float32, float16 or bfloat16")));
        }
    }
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    Ok((tensor.dims().to_vec(), tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_become_canonical() {
        for (architecture, old, canonical) in [
            (Architecture::Bert, "embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
            (
                Architecture::Bert,
                "bert.encoder.layer.0.output.LayerNorm.beta",
                "bert.encoder.layer.0.output.LayerNorm.bias",
            ),
            (Architecture::Bert, "cls.predictions.bias", "cls.predictions.bias"),
            (Architecture::Bert, "encoder.layer.3.output.dense.weight", "bert.encoder.layer.3.output.dense.weight"),
            (Architecture::ElectraGenerator, "embeddings_project.weight", "electra.embeddings_project.weight"),
            (Architecture::ElectraGenerator, "generator_lm_head.bias", "generator_lm_head.bias"),
        ] {
            assert_eq!(canonical_name(old, architecture), canonical);
        }
    }
}
