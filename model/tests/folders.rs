//! Model folders: what is accepted, and what a broken one is told.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use model::{Bert, Configuration, PackedBatch, Parameters, Tokenizer, check_words, fingerprint_weights};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/teachers").join(name)
}

/// A copy of a golden teacher's configuration and weights, changed.
fn altered(name: &str, configuration: impl Fn(&mut Value), tensors: impl Fn(&mut Tensors)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap();
    configuration(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let path = golden(name).join("model.safetensors");
    let mut map: Tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect();
    tensors(&mut map);
    save(&map, &dir.path().join("model.safetensors"));
    dir
}

fn save(tensors: &Tensors, path: &Path) {
    candle_core::safetensors::save(&tensors.clone().into_iter().collect::<HashMap<_, _>>(), path).unwrap();
}

fn outputs(bert: &Bert) -> Vec<Vec<f32>> {
    let batch = PackedBatch {
        token_ids: (5..27).collect(),
        lengths: vec![9, 13],
        masked_rows: vec![1, 4, 17],
        ..PackedBatch::default()
    };
    let (weight, bias) = bert.decoder();
    let logits = bert.transform_masked(&batch, None).unwrap().matmul(&weight.t().unwrap()).unwrap();
    logits.broadcast_add(bias).unwrap().to_vec2().unwrap()
}

fn check_same(dir: &Path, name: &str) -> Bert {
    let bert = Bert::load(dir, &Device::Cpu).unwrap();
    assert_eq!(outputs(&bert), outputs(&Bert::load(&golden(name), &Device::Cpu).unwrap()));
    bert
}

fn check_refused(dir: &Path, expected: &[&str]) {
    let message = Bert::load(dir, &Device::Cpu).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{message}\nlacks: {part}");
    }
    assert!(message.contains(dir.to_str().unwrap()), "{message}\ndoes not name the folder");
}

#[test]
fn a_decoder_equal_to_the_embedding_is_tied() {
    let copy = |tensors: &mut Tensors| {
        let words = tensors["bert.embeddings.word_embeddings.weight"].clone();
        tensors.insert("cls.predictions.decoder.weight".into(), words);
    };
    let bert = check_same(altered("uncased", |_| (), copy).path(), "uncased");
    assert!(bert.configuration.tie_word_embeddings && bert.parameters.tied());
    let untie = |config: &mut Value| config["tie_word_embeddings"] = json!(false);
    let bert = check_same(altered("uncased", untie, copy).path(), "uncased");
    assert!(!bert.configuration.tie_word_embeddings && !bert.parameters.tied());
}

#[test]
fn a_decoder_of_its_own_is_untied_whatever_the_configuration_says() {
    let other = |tensors: &mut Tensors| {
        let words = &tensors["bert.embeddings.word_embeddings.weight"];
        let other = (words * 2.0).unwrap();
        tensors.insert("cls.predictions.decoder.weight".into(), other);
    };
    let bert = Bert::load(altered("uncased", |_| (), other).path(), &Device::Cpu).unwrap();
    assert!(!bert.configuration.tie_word_embeddings);
    assert_ne!(outputs(&bert), outputs(&Bert::load(&golden("uncased"), &Device::Cpu).unwrap()));
}

#[test]
fn names_without_prefix_and_shards() {
    let strip = |tensors: &mut Tensors| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (name.replace("electra.", ""), t)).collect();
    };
    check_same(altered("electra", |_| (), strip).path(), "electra");

    let dir = altered("padded", |_| (), |_| ());
    let path = dir.path().join("model.safetensors");
    let tensors: Tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter().collect();
    std::fs::remove_file(path).unwrap();
    let mut parts = [Tensors::new(), Tensors::new()];
    let mut weight_map = serde_json::Map::new();
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        weight_map.insert(name.clone(), format!("model-{}.safetensors", index % 2).into());
        parts[index % 2].insert(name, tensor);
    }
    for (index, part) in parts.iter().enumerate() {
        save(part, &dir.path().join(format!("model-{index}.safetensors")));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"weight_map": weight_map}).to_string()).unwrap();
    check_same(dir.path(), "padded");
    let before = fingerprint_weights(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    check_refused(dir.path(), &["cannot read", "model-1.safetensors"]);
    assert_ne!(before, fingerprint_weights(&golden("padded")).unwrap());
    std::fs::write(&index, json!({"weight_map": {"a": "../outside.safetensors"}}).to_string()).unwrap();
    check_refused(dir.path(), &["model.safetensors.index.json", "is not the name of a file beside the index"]);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    let without = altered("uncased", |_| (), |tensors| drop(tensors.remove(query)));
    check_refused(without.path(), &["model.safetensors", query, "[24, 24]"]);
    let narrow = |tensors: &mut Tensors| {
        let tensor = tensors[query].narrow(0, 0, 23).unwrap().contiguous().unwrap();
        tensors.insert(query.into(), tensor);
    };
    check_refused(altered("uncased", |_| (), narrow).path(), &[query, "has shape [23, 24]", "[24, 24]"]);
    let more_rows = |config: &mut Value| config["vocab_size"] = json!(300);
    let words = "bert.embeddings.word_embeddings.weight";
    check_refused(altered("uncased", more_rows, |_| ()).path(), &[words, "[300, 24]", "[216, 24]"]);
    let headless = |tensors: &mut Tensors| tensors.retain(|name, _| !name.starts_with("cls."));
    check_refused(altered("uncased", |_| (), headless).path(), &["cls.predictions", "no masked-language-model head"]);
    let untied = |config: &mut Value| config["tie_word_embeddings"] = json!(false);
    check_refused(altered("uncased", untied, |_| ()).path(), &["cls.predictions.decoder.weight", "[216, 24]"]);
    let integers = |tensors: &mut Tensors| {
        tensors.insert(query.into(), Tensor::zeros((24, 24), candle_core::DType::U32, &Device::Cpu).unwrap());
    };
    check_refused(altered("uncased", |_| (), integers).path(), &[query, "U32", "expected float32"]);
}

#[test]
fn unsupported_models_are_refused() {
    for (key, value, expected) in [
        ("model_type", json!("roberta"), "unsupported `model_type` \"roberta\"; supported: BertForMaskedLM"),
        ("hidden_act", json!("quick_gelu"), "unknown `hidden_act` \"quick_gelu\""),
        ("is_decoder", json!(true), "decoder"),
        ("position_embedding_type", json!("relative_key"), "`position_embedding_type` \"relative_key\""),
        ("architectures", json!(["BertLMHeadModel"]), "decoder"),
        ("num_attention_heads", json!(5), "`hidden_size` 24 is not a multiple of `num_attention_heads` 5"),
        ("num_hidden_layers", json!(0), "`num_hidden_layers` is 0"),
        ("layer_norm_eps", json!(0.0), "`layer_norm_eps` is 0"),
        ("hidden_dropout_prob", json!(1.0), "`hidden_dropout_prob` is 1"),
        ("classifier_dropout", json!(-0.1), "`classifier_dropout` is -0.1"),
        ("hidden_size", json!("wide"), "config.json is malformed"),
    ] {
        let dir = altered("uncased", |config| config[key] = value.clone(), |_| ());
        check_refused(dir.path(), &["config.json", expected]);
    }
    let discriminator = |config: &mut Value| config["architectures"] = json!(["ElectraForPreTraining"]);
    check_refused(altered("electra", discriminator, |_| ()).path(), &["config.json", "discriminator", "generator"]);
}

#[test]
fn folders_without_what_is_needed() {
    let dir = altered("uncased", |_| (), |_| ());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    check_refused(dir.path(), &["has no weights: looked for model.safetensors,", "pytorch_model.bin"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02\x8a\x0al\xfc\x9cF").unwrap();
    check_refused(dir.path(), &["pytorch_model.bin", "PyTorch 1.6"]);
    std::fs::write(dir.path().join("model.safetensors"), b"nonsense").unwrap();
    check_refused(dir.path(), &["model.safetensors is malformed"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    check_refused(dir.path(), &["cannot read", "config.json"]);
    check_refused(Path::new("/nonexistent/teacher"), &["cannot read"]);
}

#[test]
fn rows_and_words_are_compared() {
    let tokenizer = Tokenizer::load(&golden("padded")).unwrap();
    let mut configuration = Configuration::load(&golden("padded")).unwrap();
    assert_eq!(check_words(&configuration, &tokenizer).unwrap(), 384 - tokenizer.len());
    configuration.vocabulary_size = tokenizer.len() - 1;
    let message = check_words(&configuration, &tokenizer).unwrap_err().to_string();
    assert!(message.contains(&format!("{} words", tokenizer.len())), "{message}");
}

#[test]
fn saved_parameters_load_again() {
    for name in ["uncased", "legacy", "electra"] {
        let bert = Bert::load(&golden(name), &Device::Cpu).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        bert.parameters.save_safetensors(&file).unwrap();
        std::fs::write(dir.path().join("config.json"), bert.configuration.to_hugging_face().to_string()).unwrap();
        check_same(dir.path(), name);
        assert_eq!(Configuration::load(dir.path()).unwrap(), bert.configuration);
        let bytes = std::fs::read(file).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    }
}

#[test]
fn parameters_that_do_not_fit_are_refused() {
    let configuration = Configuration::load(&golden("electra")).unwrap();
    let parameters = Parameters::load(&golden("electra"), &configuration, &Device::Cpu).unwrap();
    let map = || parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect::<Tensors>();
    assert!(Parameters::from_map(map(), &configuration).is_ok());
    let refused = |map: Tensors, expected: &str| {
        let message = Parameters::from_map(map, &configuration).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let name = "electra.embeddings_project.weight";
    let mut without = map();
    without.remove(name);
    refused(without, name);
    let mut more = map();
    more.insert("electra.pooler.weight".into(), map()[name].clone());
    refused(more, "`electra.pooler.weight` is not a parameter");
    let mut transposed = map();
    transposed.insert(name.into(), map()[name].t().unwrap());
    refused(transposed, "[16, 24]");
}

#[test]
fn fresh_parameters_are_a_function_of_the_seed() {
    let configuration = Configuration::load(&golden("electra")).unwrap();
    let list = |seed| {
        let parameters = Parameters::initialise(&configuration, seed, &Device::Cpu).unwrap();
        let values = |(name, tensor): (&str, &Tensor)| {
            (name.to_owned(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        parameters.iter().map(values).collect::<BTreeMap<_, _>>()
    };
    let (fresh, other) = (list(1), list(2));
    assert_eq!(fresh, list(1));
    for (name, values) in &fresh {
        if name.ends_with("LayerNorm.weight") {
            assert!(values.iter().all(|value| *value == 1.0), "{name}");
        } else if name.ends_with("bias") {
            assert!(values.iter().all(|value| *value == 0.0), "{name}");
        } else {
            let deviation = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
            assert!((deviation / configuration.initializer_range as f32 - 1.0).abs() < 0.3, "{name}: {deviation}");
            assert_ne!(*values, other[name], "{name}");
        }
    }
    let words = &fresh["electra.embeddings.word_embeddings.weight"];
    assert!(words[..configuration.embedding_size].iter().all(|value| *value == 0.0));
}
