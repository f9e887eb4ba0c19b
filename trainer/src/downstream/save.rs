//! A fine-tuned model as a Hugging Face folder.

use super::DownstreamError;
use super::head::HeadKind;
use super::task_model::TaskModel;
use crate::{TrainerError, durable};
use model::{Architecture, ModelError, Numbers};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Tells a model that was fine-tuned here from a teacher, an export, and whatever else somebody cares for.
const MARKER: &str = "mergedistill-finetune.json";

/// Files of a tokenizer, as transformers names them; those that a folder has are copied.
const TOKENIZER_FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"];

/// A folder that a fine-tuned model may be written to.
#[derive(Clone, Debug)]
pub struct Destination {
    out: PathBuf,
    tokenizer: PathBuf,
}

impl Destination {
    /// Claims `out` before anything is trained: it has to be new, empty, or hold a model that was fine-tuned here before, which stays until
    /// another one is saved. It is never the folder of the model or of the tokenizer that the run reads.
    ///
    /// # Errors
    /// [`DownstreamError::Target`] if it is not such a folder; failures to write.
    pub fn claim(out: &Path, model: &Path, tokenizer: &Path) -> Result<Self, DownstreamError> {
        let refused = |reason: String| Err(DownstreamError::Target { path: out.to_owned(), reason });
        match fs::read_dir(out) {
            Ok(mut entries) => {
                for (what, folder) in [("model", model), ("tokenizer", tokenizer)] {
                    if is_same(out, folder) {
                        return refused(format!("it is the folder of the {what}; choose another one"));
                    }
                }
                if entries.next().is_some() && !out.join(MARKER).is_file() {
                    let what = "it holds something that is not a model that was fine-tuned here";
                    return refused(format!("{what}; choose another folder, or empty this one"));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return refused(error.to_string()),
        }
        durable::create_folder(out)?;
        let marker = json!({"made_by": concat!("mergedistill ", env!("CARGO_PKG_VERSION"))});
        durable::replace(&out.join(MARKER), format!("{marker:#}\n").as_bytes())?;
        Ok(Self { out: out.to_owned(), tokenizer: tokenizer.to_owned() })
    }
}

impl TaskModel {
    /// Writes the model and its tokenizer: `AutoModelForTokenClassification` and its like load the folder. `classes` are in the order of
    /// their numbers; spans have none. The files appear whole; while they do not belong together there is no configuration.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn save(&self, to: &Destination, classes: &[String]) -> Result<(), DownstreamError> {
        let Destination { out, tokenizer } = to;
        remove(&out.join("config.json"))?;
        for name in TOKENIZER_FILES {
            let from = tokenizer.join(name);
            match fs::read(&from) {
                Ok(bytes) => durable::replace(&out.join(name), &bytes)?,
                Err(error) if error.kind() == ErrorKind::NotFound => remove(&out.join(name))?,
                Err(source) => return Err(DownstreamError::Read { path: from, source }),
            }
        }
        self.save_weights(&out.join("model.safetensors"))?;
        let text = format!("{:#}\n", self.to_hugging_face(classes));
        Ok(durable::replace(&out.join("config.json"), text.as_bytes())?)
    }

    fn save_weights(&self, path: &Path) -> Result<(), DownstreamError> {
        let tensors: BTreeMap<&str, Numbers<'_>> = self
            .parameters()
            .map(|parameter| (parameter.name, Numbers::new(parameter.values, parameter.shape.to_vec())))
            .collect();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|error| {
            DownstreamError::Model(ModelError::Write { path: path.to_owned(), reason: error.to_string() })
        })?;
        Ok(durable::replace(path, &bytes)?)
    }

    /// `config.json`.
    fn to_hugging_face(&self, classes: &[String]) -> Value {
        let of = match self.configuration().architecture {
            Architecture::Bert => "Bert",
            Architecture::ElectraGenerator => "Electra",
        };
        let task = match self.head().kind() {
            HeadKind::Tokens(_) => "TokenClassification",
            HeadKind::Texts(_) => "SequenceClassification",
            HeadKind::Spans => "QuestionAnswering",
        };
        let mut value = self.configuration().to_hugging_face();
        value["architectures"] = json!([format!("{of}For{task}")]);
        if !classes.is_empty() {
            let names: Map<String, Value> =
                classes.iter().enumerate().map(|(id, class)| (id.to_string(), json!(class))).collect();
            let ids: Map<String, Value> =
                classes.iter().enumerate().map(|(id, class)| (class.clone(), json!(id))).collect();
            value["id2label"] = Value::Object(names);
            value["label2id"] = Value::Object(ids);
        }
        value
    }
}

/// Whether both are one folder, however it is called.
fn is_same(first: &Path, second: &Path) -> bool {
    matches!((first.canonicalize(), second.canonicalize()), (Ok(first), Ok(second)) if first == second)
}

/// Removes a file of an earlier model, if there is one.
fn remove(path: &Path) -> Result<(), DownstreamError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainerError::io("remove", path)(error).into()),
        _ => Ok(()),
    }
}
