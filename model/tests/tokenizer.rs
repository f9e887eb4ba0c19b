//! Tokenizer folders of every kind give the ids that transformers gives, and long texts the ids of their parts.
#![allow(clippy::unwrap_used)]

use model::{ModelError, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/teachers").join(name)
}

/// Writes a case's files; the word "vocabulary" stands for the vocabulary.
fn write_case(dir: &Path, files: &Value, vocabulary: &[&str]) {
    for (name, content) in files.as_object().unwrap() {
        let text = if content.is_string() {
            vocabulary.join("\n") + "\n"
        } else {
            let mut content = content.clone();
            if let Some(slot) = content.pointer_mut("/model/vocab") {
                *slot = vocabulary.iter().enumerate().map(|(id, word)| ((*word).to_owned(), Value::from(id))).collect();
            }
            content.to_string()
        };
        std::fs::write(dir.join(name), text).unwrap();
    }
}

#[test]
fn settings_mean_what_they_mean_to_transformers() {
    let golden: Value = serde_json::from_slice(&std::fs::read(golden("tokenizers.json")).unwrap()).unwrap();
    let strings = |key: &str| golden[key].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect::<Vec<_>>();
    let (texts, vocabulary) = (strings("texts"), strings("vocabulary"));
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        write_case(dir.path(), &case["files"], &vocabulary);
        let tokenizer = Tokenizer::load(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (text, expected) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let ids: Vec<u64> = tokenizer.encode(text).unwrap().ids.into_iter().map(u64::from).collect();
            let expected: Vec<u64> = expected.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(ids, expected, "{name}: {text}");
        }
        assert_eq!(tokenizer.len() as u64, case["words"].as_u64().unwrap(), "{name}");
        if let Some(mask) = case["mask"].as_u64() {
            assert_eq!(u64::from(tokenizer.special().mask), mask, "{name}");
        }
        assert!(tokenizer.is_special(tokenizer.special().mask), "{name}");
    }
}

#[test]
fn special_tokens_are_found_on_any_line() {
    let tokenizer = Tokenizer::load(&golden("uncased")).unwrap();
    let special = tokenizer.special();
    assert_eq!([special.unk, special.pad, special.cls, special.sep, special.mask], [0, 3, 20, 21, 137]);
    assert!(!tokenizer.is_special(1) && tokenizer.is_special(137));
    assert_eq!(tokenizer.vocabulary()[137], "[MASK]");
    assert!(tokenizer.normalisation().lowercase && tokenizer.normalisation().strip_accents.is_none());
}

#[test]
fn an_id_without_token_gets_a_name_that_no_text_has() {
    let tokenizer = Tokenizer::load(&golden("legacy")).unwrap();
    assert_eq!(&tokenizer.vocabulary()[60..62], ["[no token 60]", "twice"]);
    assert_eq!(tokenizer.len(), tokenizer.inner().get_vocab_size(true) + 1);
    let ids = tokenizer.encode("[no token 60] twice").unwrap().ids;
    assert!(!ids.contains(&60) && ids.ends_with(&[61]), "{ids:?}");
}

#[test]
fn a_long_text_gives_the_tokens_it_gives_in_one_piece() {
    let words = "Größe [MASK] 打开文件,然后选择「保存」。\tcafe\u{301} «x» e\u{300}\u{323} end.\r\n\u{3000}İI 豈";
    for name in ["uncased", "legacy", "padded", "electra"] {
        let tokenizer = Tokenizer::load(&golden(name)).unwrap();
        for text in [words.repeat(3_000), "打开文件".repeat(9_000), format!("{} a", "b".repeat(70_000))] {
            let tokens = tokenizer.encode(&text).unwrap();
            let whole = tokenizer.inner().encode(text.as_str(), false).unwrap();
            assert_eq!(tokens.ids, whole.get_ids(), "{name}");
            assert_eq!(tokens.offsets, whole.get_offsets(), "{name}");
        }
    }
}

#[test]
fn fingerprints_tell_tokenizers_apart() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n";
    let mut seen = std::collections::BTreeSet::new();
    for (vocabulary, settings) in [
        (vocabulary.to_owned(), "{}"),
        (vocabulary.to_owned(), r#"{"do_lower_case": false}"#),
        (vocabulary.to_owned(), r#"{"strip_accents": false}"#),
        (vocabulary.to_owned(), r#"{"mask_token": "a"}"#),
        (vocabulary.to_owned(), r#"{"additional_special_tokens": ["b"]}"#),
        (vocabulary.replace("a\nb", "b\na"), "{}"),
        (vocabulary.to_owned() + "c\n", "{}"),
    ] {
        std::fs::write(dir.path().join("vocab.txt"), vocabulary).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
        let fingerprint = Tokenizer::load(dir.path()).unwrap().fingerprint().to_owned();
        assert_eq!(fingerprint, Tokenizer::load(dir.path()).unwrap().fingerprint());
        assert!(fingerprint.len() == 64 && seen.insert(fingerprint), "{settings}");
    }
}

#[test]
fn unusable_folders_are_refused() {
    let specials = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
    let unigram = r#"{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}"#;
    let generic = r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#;
    for (files, expected) in [
        (vec![], "has no tokenizer: looked for tokenizer.json, vocab.txt"),
        (vec![("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n")], "vocab.txt: the vocabulary has no mask token `[MASK]`"),
        (vec![("tokenizer.json", unigram)], "tokenizer.json: a tokenizer of type Unigram; only WordPiece"),
        (vec![("tokenizer.json", unigram), ("tokenizer_config.json", generic)], "only WordPiece is supported"),
        (vec![("tokenizer.json", "{")], "tokenizer.json is malformed"),
        (vec![("vocab.txt", specials), ("tokenizer_config.json", generic)], "needs tokenizer.json"),
        (vec![("vocab.txt", specials), ("tokenizer_config.json", r#"{"do_lower_case": 1}"#)], "`do_lower_case` is 1"),
        (vec![("vocab.txt", specials), ("tokenizer_config.json", "[]")], "expected a JSON object"),
        (
            vec![("vocab.txt", specials), ("tokenizer_config.json", r#"{"tokenizer_class": "BertJapaneseTokenizer"}"#)],
            "morphological analyser",
        ),
        (
            vec![("tokenizer.json", r#"{"model": {"type": "WordPiece", "vocab": {"[PAD]": -1}}}"#)],
            "token `[PAD]` has no valid id",
        ),
        (
            vec![(
                "tokenizer.json",
                r#"{"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4000000000}}}"#,
            )],
            "4000000000 is beyond the limit",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let message = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nlacks: {expected}");
        assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    }
    let missing = Tokenizer::load(Path::new("/nonexistent/teacher")).unwrap_err();
    assert!(matches!(missing, ModelError::Read { .. }), "{missing}");
}
