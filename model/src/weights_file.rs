//! Writing a `model.safetensors` that transformers loads.

use crate::parameters::Names;
use crate::{Architecture, Layout, ModelError, Parameters};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Float32 numbers on their way into a safetensors file. They are not copied where the machine stores them as the file does.
#[derive(Clone, Debug)]
pub struct Numbers<'a> {
    values: Cow<'a, [f32]>,
    shape: Vec<usize>,
}

impl<'a> Numbers<'a> {
    /// A tensor of dimensions `shape`, row after row.
    #[must_use]
    pub fn new(values: impl Into<Cow<'a, [f32]>>, shape: Vec<usize>) -> Self {
        Self { values: values.into(), shape }
    }
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(&self.values))
        } else {
            self.values.iter().flat_map(|number| number.to_le_bytes()).collect()
        }
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

impl Parameters {
    /// Writes a `model.safetensors` that transformers loads, and makes it durable.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_safetensors(&self, path: &Path) -> Result<(), ModelError> {
        let mut views = BTreeMap::new();
        for (name, tensor) in self.iter() {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            views.insert(name, Numbers::new(values, tensor.dims().to_vec()));
        }
        save(views, path)
    }
}

impl Layout {
    /// The same for the parameters in an arena of this layout.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_safetensors(&self, arena: &[f32], path: &Path) -> Result<(), ModelError> {
        let view = |slot: &crate::Slot| Numbers::new(&arena[slot.range.clone()], slot.shape.clone());
        save(self.slots().iter().map(|slot| (slot.name.as_str(), view(slot))).collect(), path)
    }
}

fn save<'a>(mut views: BTreeMap<&'a str, Numbers<'a>>, path: &Path) -> Result<(), ModelError> {
    let failed = |reason: String| ModelError::Write { path: path.to_path_buf(), reason };
    // An untied BERT has its bias under two names; transformers 5 reads the second one.
    let names = Names::of(Architecture::Bert);
    if views.contains_key(names.decoder_weight)
        && let Some(bias) = views.get(names.decoder_bias).cloned()
    {
        views.insert(names.linear_bias, bias);
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| failed(error.to_string()))?;
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(error.to_string()))
}
