//! Golden teachers: token ids, offsets and logits are those of transformers.
#![allow(clippy::unwrap_used)]

mod parity;

use parity::{Expected, compare};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/teachers").join(name)
}

fn check(name: &str) {
    let dir = golden(name);
    let expected = Expected::read(&dir.join("expected.safetensors")).unwrap();
    assert!(expected.gold_ids.len() >= 500);
    let differences = compare(&dir, &expected, 1e-4).unwrap();
    assert!(differences.within(1e-3), "{name}: {differences:?}");
}

#[test]
fn uncased_without_tokenizer_json() {
    check("uncased");
}

#[test]
fn pickle_with_old_names_and_own_decoder() {
    check("legacy");
}

#[test]
fn more_rows_than_words_in_bfloat16() {
    check("padded");
}

#[test]
fn electra_generator_in_float16() {
    check("electra");
}
