//! `bench store`: the fields that others rely on, and figures that fit what was asked for.

use crate::harness::{mergedistill, text};
use crate::scene::{Scene, entries, expect};
use serde_json::Value;
use std::fs;
use std::process::Output;
use store::Precision;

fn bench(arguments: &[&str]) -> Output {
    mergedistill(&["bench", "store", "--json", "--repeat", "1"]).args(arguments).output().unwrap()
}

/// The figures of a small bench in a folder that is empty afterwards.
fn figures(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--append-bytes", "200000", "--sync-interval-ms", "1", "--dir", dir.path().to_str().unwrap()];
    let output = bench(&[&small[..], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the temporary log is still there");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(figures: &Value, field: &str) -> f64 {
    figures[field].as_f64().unwrap_or_else(|| panic!("no number `{field}` in {figures}"))
}

#[test]
fn made_up_records_are_measured() {
    let shape = ["--positions", "3000", "--top-k", "5", "--teacher-vocab", "2000", "--block-tokens", "4000"];
    let exact = figures(&shape);
    for field in [
        "records",
        "positions",
        "encode_positions_per_second",
        "decode_positions_per_second",
        "append_bytes_per_second",
        "disk_bytes_per_second",
        "write_bytes",
        "writes_per_sync",
        "recovery_seconds_per_gb",
        "open_sealed_seconds",
        "bytes_per_position",
        "bytes_per_token",
    ] {
        assert!(number(&exact, field) > 0.0, "{field}: {exact}");
    }
    assert!((3000.0..3100.0).contains(&number(&exact, "positions")), "{exact}");
    assert_eq!((number(&exact, "top_k"), exact["precision"].as_str()), (5.0, Some("exact")));
    // A block has 4000 tokens, or up to a sequence more.
    let tokens_per_block = number(&exact, "tokens") / number(&exact, "blocks");
    assert!((2000.0..4130.0).contains(&tokens_per_block), "{exact}");
    assert!((200_000.0..600_000.0).contains(&number(&exact, "append_bytes")), "{exact}");
    // Twenty bytes of logits alone.
    assert!((20.0..60.0).contains(&number(&exact, "bytes_per_position")), "{exact}");
    let compact = figures(&[&shape[..], &["--precision", "compact", "--threads", "2"]].concat());
    assert_eq!(number(&compact, "positions"), number(&exact, "positions"));
    assert!(number(&compact, "bytes_per_position") < 0.6 * number(&exact, "bytes_per_position"), "{compact}");
}

#[test]
fn records_of_a_log_are_measured() {
    let scene = Scene::new(Precision::Exact);
    let log = scene.log();
    let whole = figures(&["--from-log", log.to_str().unwrap()]);
    let records = entries().iter().filter(|entry| matches!(entry.payload, store::Payload::Record(_))).count();
    assert_eq!(number(&whole, "records"), records as f64);
    let dumped: usize = scene
        .dump()
        .iter()
        .flat_map(|record| record["copies"].as_array().unwrap().clone())
        .map(|copy| copy["gold_ids"].as_array().unwrap().len())
        .sum();
    assert_eq!(number(&whole, "positions"), dumped as f64);
    let part = figures(&["--from-log", log.to_str().unwrap(), "--positions", "10"]);
    assert!((10.0..20.0).contains(&number(&part, "positions")), "{part}");
}

#[test]
fn bad_arguments_are_named() {
    expect(&bench(&["--from-log", "/no/such/log"]), 66, &["/no/such/log"]);
    expect(&bench(&["--positions", "10", "--dir", "/no/such/folder"]), 73, &["/no/such/folder"]);
    expect(&bench(&["--precision", "vague"]), 64, &["vague"]);
    expect(&bench(&["--teacher-vocab", "10"]), 64, &["--teacher-vocab"]);
}
