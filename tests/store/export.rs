//! `log export --parquet`: what the file holds is what `log dump` prints.

use crate::harness::text;
use crate::scene::{Scene, TOP_K, entries, expect, identity};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::path::Path;
use store::Precision;

fn export(scene: &Scene, arguments: &[&str]) -> Vec<Value> {
    let path = scene.path("log.parquet");
    let output = scene.run("export", &[&["--parquet", path.to_str().unwrap()], arguments].concat());
    expect(&output, 0, &[]);
    let rows = read(&path);
    assert!(text(&output.stdout).starts_with(&format!("{} rows of ", rows.len())), "{}", text(&output.stdout));
    rows
}

fn reader(path: &Path) -> SerializedFileReader<File> {
    SerializedFileReader::new(File::open(path).unwrap()).unwrap()
}

fn read(path: &Path) -> Vec<Value> {
    reader(path).get_row_iter(None).unwrap().map(|row| row_json(&row.unwrap())).collect()
}

fn row_json(row: &Row) -> Value {
    row.get_column_iter().map(|(name, field)| (name.clone(), field_json(field))).collect::<Map<_, _>>().into()
}

fn field_json(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Int(value) => json!(value),
        Field::Long(value) => json!(value),
        Field::Float(value) => json!(value),
        Field::Str(value) => json!(value),
        Field::ListInternal(list) => list.elements().iter().map(field_json).collect(),
        other => panic!("an unexpected field {other:?}"),
    }
}

/// The rows that a dump of the log amounts to.
fn wanted(scene: &Scene) -> Vec<Value> {
    scene
        .dump()
        .iter()
        .flat_map(|record| record["copies"].as_array().unwrap().iter().map(|copy| row_of(record, copy)))
        .collect()
}

fn row_of(record: &Value, copy: &Value) -> Value {
    let label = |name: &str| floats(&copy[name]);
    json!({
        "seq": record["seq"], "source": record["source"], "document": record["document"],
        "span_first": record["span"][0], "span_end": record["span"][1],
        "language": record["language"], "round": record["round"], "held_out": record["held_out"],
        "teacher": copy["teacher"], "token_ids": copy["token_ids"], "masked_positions": copy["masked_positions"],
        "gold_ids": copy["gold_ids"],
        "top_k": if copy["top_ids"].is_null() { Value::Null } else { json!(TOP_K) },
        "top_ids": copy["top_ids"], "top_logits": label("top_logits"),
        "log_sum_exp": label("log_sum_exp"), "gold_logits": label("gold_logits"), "text": record["text"],
        "computed_in": label("computed_in"),
    })
}

/// The dump prints the shortest number that is the same float32; as JSON of that float32.
fn floats(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(floats).collect(),
        Value::Number(number) => json!(number.as_f64().unwrap() as f32),
        other => other.clone(),
    }
}

#[test]
fn rows_are_the_copies_of_the_dump() {
    for precision in [Precision::Exact, Precision::Compact] {
        let scene = Scene::new(precision);
        let (rows, wanted) = (export(&scene, &[]), wanted(&scene));
        assert_eq!(rows.len(), wanted.len());
        for (row, wanted) in rows.iter().zip(&wanted) {
            assert_eq!(row, wanted);
        }
        let unlabelled = rows.iter().filter(|row| row["top_ids"].is_null()).count();
        assert!(unlabelled > 0 && unlabelled < rows.len());
    }
}

#[test]
fn the_file_says_what_the_log_is_made_of() {
    let scene = Scene::new(Precision::Exact);
    export(&scene, &[]);
    let reader = reader(&scene.path("log.parquet"));
    let metadata = reader.metadata();
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let stored = pairs.iter().find(|pair| pair.key == "mergedistill.identity").unwrap().value.as_ref().unwrap();
    assert_eq!(serde_json::from_str::<store::Identity>(stored).unwrap(), identity());
    let column = metadata.row_group(0).column(0);
    assert!(matches!(column.compression(), parquet::basic::Compression::ZSTD(_)), "{column:?}");
}

#[test]
fn rows_are_chosen_by_teacher_language_and_place() {
    let scene = Scene::new(Precision::Exact);
    let all = export(&scene, &[]);
    let check = |arguments: &[&str], wanted: &dyn Fn(&Value) -> bool| {
        let expected: Vec<_> = all.iter().filter(|row| wanted(row)).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < all.len());
        assert_eq!(export(&scene, arguments), expected, "{arguments:?}");
    };
    check(&["--teacher", "both"], &|row| row["teacher"] == "both");
    check(&["--language", "de"], &|row| row["language"] == "de");
    check(&["--from", "13", "--to", "21"], &|row| (13..21).contains(&row["seq"].as_u64().unwrap()));
    let both = |row: &Value| row["teacher"] == "plain" && row["seq"].as_u64().unwrap() >= 20;
    check(&["--teacher", "plain", "--language", "en", "--from", "20"], &both);
    // Nothing is left: a file without rows.
    assert!(export(&scene, &["--from", "1000"]).is_empty());
    assert!(export(&scene, &["--teacher", "en", "--language", "de"]).is_empty());
}

#[test]
fn what_the_log_does_not_have_is_named() {
    let scene = Scene::new(Precision::Exact);
    let path = scene.path("out.parquet");
    let check = |file: &Path, arguments: &[&str], code: i32, words: &[&str]| {
        expect(&scene.run("export", &[&["--parquet", file.to_str().unwrap()], arguments].concat()), code, words);
    };
    check(&path, &["--teacher", "nobody"], 64, &["`nobody`", "`en`, `both`, `plain`", "--teacher"]);
    check(&path, &["--language", "fi"], 64, &["`fi`", "`de`, `en`", "--language"]);
    check(&scene.path("no/such/folder/out.parquet"), &[], 73, &["no/such/folder/out.parquet"]);
    check(&scene.log(), &[], 73, &["it is a folder"]);
    assert!(!path.exists());
}

#[test]
fn a_file_is_replaced_when_the_new_one_is_complete() {
    let scene = Scene::new(Precision::Exact);
    let path = scene.path("log.parquet");
    fs::write(&path, "something else").unwrap();
    // The second half of the log is damaged: the export fails, and nothing has changed.
    let segment = fs::read_dir(scene.log()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    let intact = fs::read(&segment).unwrap();
    let mut damaged = intact.clone();
    let block = intact.windows(4).rposition(|bytes| bytes == b"MDbk").unwrap();
    damaged[block + 400..block + 900].fill(0);
    fs::write(&segment, damaged).unwrap();
    expect(&scene.run("export", &["--parquet", path.to_str().unwrap()]), 65, &["corrupt log"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
    fs::write(&segment, intact).unwrap();
    assert!(!export(&scene, &[]).is_empty());
    let left: Vec<_> = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_live_log_is_exported_as_far_as_it_is_durable() {
    let (scene, mut log) = Scene::live();
    log.append(&entries()[..10]).unwrap();
    log.sync().unwrap();
    log.append(&entries()[10..20]).unwrap();
    let rows = export(&scene, &[]);
    assert_eq!(rows.last().unwrap()["seq"], 9);
    assert_eq!(rows, wanted(&scene));
}
