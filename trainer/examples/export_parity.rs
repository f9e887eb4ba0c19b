//! Exports students over the vocabularies of real teachers, with what they compute, for `tests/export_parity.py` to compare
//! with transformers:
//!
//! ```text
//! cargo run -p trainer --example export_parity -- OUT TEXT TEACHER...
//! python tests/export_parity.py OUT
//! ```
//!
//! For a plain and a factorised student, `OUT/<kind>/` gets the exported folder `student`, `case.safetensors` (packed token
//! ids, lengths, masked rows and their logits) and `ids.json` (lines of TEXT and their token ids, by tokenizer). In `OUT/<kind>-cut/`
//! lies the same student cut to the first teacher's tokens; its logits there are the whole student's, those of the kept tokens.

use candle_core::{Device, Tensor};
use model::random::Philox;
use model::{Bert, PackedBatch, Parameters, Tokenizer};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf, StripPrefixError};
use trainer::tokenizer_export::{KnownTeacher, TEACHER_TOKENIZERS, export_tokenizers, write_known_teachers};
use trainer::{StudentOptions, TeacherTokens, Vocabulary};

const LINES: usize = 200;
const LENGTHS: [usize; 6] = [5, 9, 9, 17, 40, 64];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(out), Some(text)) = (arguments.next(), arguments.next()) else {
        return Err("usage: export_parity OUT TEXT TEACHER...".into());
    };
    let teachers: Vec<PathBuf> = arguments.collect();
    let tokenizers: Vec<Tokenizer> =
        teachers.iter().map(|teacher| Tokenizer::load(teacher)).collect::<Result<_, _>>()?;
    let names: Vec<String> =
        teachers.iter().map(|teacher| teacher.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    let tokens: Vec<_> =
        names.iter().zip(&tokenizers).map(|(name, tokenizer)| TeacherTokens::new(name, tokenizer)).collect();
    let vocabulary = Vocabulary::union(&tokens)?;
    let text = fs::read_to_string(text)?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(LINES).collect();
    for (kind, embedding_size) in [("plain", 64), ("factorised", 24)] {
        let out = out.join(kind);
        fs::create_dir_all(&out)?;
        let bert = student(embedding_size, vocabulary.size())?;
        let exported = out.join("tokenizer-files");
        let references: Vec<&Tokenizer> = tokenizers.iter().collect();
        let folders =
            export_tokenizers(&exported, &vocabulary, &references, bert.configuration.max_position_embeddings)?;
        let known = names.iter().zip(&folders).map(|(name, folder)| {
            let tokenizer = folder.strip_prefix(&exported)?.to_owned();
            Ok(KnownTeacher { name: name.clone(), languages: vec![name.clone()], tokenizer })
        });
        write_known_teachers(&exported, &known.collect::<Result<Vec<_>, StripPrefixError>>()?)?;
        let folder = out.join("student");
        trainer::export::export(&folder, &bert, &exported, 0, None, &[])?;
        write_logits(&out, &bert, None)?;
        write_ids(&out, &folder, &lines)?;
        println!("{kind}: {} tokens in the union → {}", vocabulary.size(), folder.display());
        let out = out.with_file_name(format!("{kind}-cut"));
        let folder = out.join("student");
        let cut = trainer::export::export(&folder, &bert, &exported, 0, None, &names[..1])?;
        write_logits(&out, &bert, Some(&kept_rows(&vocabulary)?))?;
        write_ids(&out, &folder, &lines)?;
        println!("{kind}: cut to {} tokens → {}", cut.tokens, folder.display());
    }
    Ok(())
}

/// Every parameter random, so that none hides behind a zero or a one.
fn student(embedding_size: usize, vocabulary_size: usize) -> Result<Bert, Box<dyn Error>> {
    let options = StudentOptions {
        layers: 3,
        hidden_size: 64,
        heads: 4,
        intermediate_size: 128,
        embedding_size,
        max_sequence_length: 64,
        dropout: 0.1,
        ..StudentOptions::default()
    };
    let configuration = options.configuration(vocabulary_size, 0);
    let mut tensors = BTreeMap::new();
    for (name, shape) in Parameters::expected(&configuration) {
        let random = Philox::new(0, "parity", &[name.as_bytes()]);
        let offset = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let count: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..count as u64).map(|at| (offset + 0.2 * random.normal(at, 0)) as f32).collect();
        tensors.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu)?);
    }
    let parameters = Parameters::from_map(tensors, &configuration)?;
    Ok(Bert { configuration, parameters })
}

/// Rows of the student that its cut to the first teacher has, by their number there.
fn kept_rows(vocabulary: &Vocabulary) -> Result<Vec<u32>, Box<dyn Error>> {
    let map = vocabulary.maps().first().ok_or("there is no teacher")?;
    let rows: BTreeSet<u32> = map.to_student.iter().copied().collect();
    Ok(rows.into_iter().collect())
}

/// Logits of `bert` for random tokens. `kept`: only these rows are there for whoever is compared, which knows them by their number.
fn write_logits(out: &Path, bert: &Bert, kept: Option<&[u32]>) -> Result<(), Box<dyn Error>> {
    let random = Philox::new(1, "parity", &[]);
    let tokens: usize = LENGTHS.iter().sum();
    let vocabulary = kept.map_or(bert.configuration.vocabulary_size, <[u32]>::len) as u64;
    let known_ids: Vec<u32> = (0..tokens as u64).map(|at| 1 + random.below(vocabulary - 1, at, 0) as u32).collect();
    let token_ids = known_ids.iter().map(|id| kept.map_or(*id, |kept| kept[*id as usize])).collect();
    let masked_rows: Vec<u32> = (0..tokens as u32).filter(|row| row % 4 == 1).collect();
    let batch = PackedBatch { token_ids, lengths: LENGTHS.to_vec(), masked_rows, ..PackedBatch::default() };
    let hidden = bert.transform_masked(&batch, None)?;
    let (weight, bias) = bert.decoder();
    let mut logits = hidden.matmul(&weight.t()?)?.broadcast_add(bias)?;
    if let Some(kept) = kept {
        logits = logits.index_select(&Tensor::new(kept, &Device::Cpu)?, 1)?;
    }
    let lengths: Vec<u32> = batch.lengths.iter().map(|length| *length as u32).collect();
    let tensors = HashMap::from([
        ("token_ids", Tensor::new(known_ids.as_slice(), &Device::Cpu)?),
        ("lengths", Tensor::new(lengths.as_slice(), &Device::Cpu)?),
        ("masked_rows", Tensor::new(batch.masked_rows.as_slice(), &Device::Cpu)?),
        ("logits", logits),
    ]);
    Ok(candle_core::safetensors::save(&tensors, out.join("case.safetensors"))?)
}

/// Ids as this program's own tokenizers give them, from the exported folders.
fn write_ids(out: &Path, folder: &Path, lines: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut folders = vec![PathBuf::new()];
    for entry in fs::read_dir(folder.join(TEACHER_TOKENIZERS))? {
        folders.push(PathBuf::from(TEACHER_TOKENIZERS).join(entry?.file_name()));
    }
    let mut by_tokenizer = Map::new();
    for relative in folders {
        let tokenizer = Tokenizer::load(&folder.join(&relative))?;
        let ids: Vec<Vec<u32>> =
            lines.iter().map(|line| tokenizer.encode(line).map(|tokens| tokens.ids)).collect::<Result<_, _>>()?;
        by_tokenizer.insert(relative.to_string_lossy().into_owned(), json!(ids));
    }
    let document = json!({"lines": lines, "ids": Value::Object(by_tokenizer)});
    Ok(fs::write(out.join("ids.json"), document.to_string())?)
}
