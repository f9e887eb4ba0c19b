//! A fine-tuned model as a Hugging Face folder.

use super::DownstreamError;
use super::head::HeadKind;
use super::task_model::TaskModel;
use crate::durable;
use model::{Architecture, ModelError, Numbers};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// Files of a tokenizer, as transformers names them; those that a folder has are copied.
const TOKENIZER_FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"];

impl TaskModel {
    /// Writes the model to the folder `out`, with the tokenizer of the folder `tokenizer`: `AutoModelForTokenClassification` and its
    /// like load it. `classes` are in the order of their numbers; spans have none. The files appear whole, the configuration last.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn save(&self, out: &Path, tokenizer: &Path, classes: &[String]) -> Result<(), DownstreamError> {
        durable::create_folder(out)?;
        for name in TOKENIZER_FILES {
            let from = tokenizer.join(name);
            match fs::read(&from) {
                Ok(bytes) => durable::replace(&out.join(name), &bytes)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
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
