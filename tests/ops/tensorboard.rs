//! TensorBoard's event files say what `metrics.jsonl` says, each step once, also after steps were trained twice.

use crate::harness::{Scene, configuration, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A value that is shown, by its tag and step.
type Shown = BTreeMap<(String, u64), f32>;

/// One event.
struct Event {
    step: u64,
    file_version: Option<String>,
    is_session_start: bool,
    scalars: Vec<(String, f32)>,
}

/// Fields of a protobuf message: number, and content (of a varint or fixed field its bits).
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let (bits, content) = match key & 7 {
            0 => (varint(&mut message), &message[..0]),
            1 => (u64::from_le_bytes(take(&mut message, 8).try_into().unwrap()), &message[..0]),
            2 => {
                let length = varint(&mut message) as usize;
                (0, take(&mut message, length))
            }
            5 => (u32::from_le_bytes(take(&mut message, 4).try_into().unwrap()).into(), &message[..0]),
            kind => panic!("wire type {kind}"),
        };
        found.push((key >> 3, bits, content));
    }
    found
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = from.split_at(length);
    *from = rest;
    taken
}

fn varint(from: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(from, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint without end")
}

/// CRC-32C bit by bit, masked as records have it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of a file; every frame is whole, and its checksums match.
fn events(mut file: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !file.is_empty() {
        let length = take(&mut file, 8);
        assert_eq!(take(&mut file, 4), masked_crc(length).to_le_bytes());
        let data = take(&mut file, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(take(&mut file, 4), masked_crc(data).to_le_bytes());
        let mut event = Event { step: 0, file_version: None, is_session_start: false, scalars: Vec::new() };
        for (number, bits, content) in fields(data) {
            match number {
                1 => assert!(f64::from_bits(bits) > 1.7e9, "Unix seconds"),
                2 => event.step = bits,
                3 => event.file_version = Some(text(content)),
                5 => event.scalars = fields(content).into_iter().map(|(_, _, value)| scalar(value)).collect(),
                7 => event.is_session_start = fields(content)[0].1 == 1,
                number => panic!("field {number}"),
            }
        }
        events.push(event);
    }
    events
}

fn scalar(value: &[u8]) -> (String, f32) {
    let fields = fields(value);
    assert_eq!(fields.iter().map(|field| field.0).collect::<Vec<_>>(), [1, 2]);
    (text(fields[0].2), f32::from_bits(fields[1].1 as u32))
}

/// The event files, in the order of their names.
fn files(scene: &Scene) -> Vec<Vec<Event>> {
    let entries = fs::read_dir(scene.path("state/tensorboard")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(
        paths.iter().all(|path| text(path.file_name().unwrap().as_encoded_bytes()).starts_with("events.out.tfevents."))
    );
    paths.iter().map(|path| events(&fs::read(path).unwrap())).collect()
}

/// What TensorBoard shows of them: a session start takes back what came before, from its step on.
fn shown(files: &[Vec<Event>]) -> Shown {
    let mut shown = Shown::new();
    for file in files {
        assert_eq!(file[0].file_version.as_deref(), Some("brain.Event:2"));
        for event in file {
            if event.is_session_start {
                shown.retain(|(_, step), _| *step < event.step);
            }
            for (tag, scalar) in &event.scalars {
                let before = shown.insert((tag.clone(), event.step), *scalar);
                assert_eq!(before, None, "{tag} at step {} is there twice", event.step);
            }
        }
    }
    shown
}

/// What `metrics.jsonl` says, under the same tags.
fn expected(scene: &Scene) -> Shown {
    let mut expected = Shown::new();
    for line in scene.metrics() {
        let step = line["step"].as_u64().unwrap();
        let mut add = |tag: String, value: &Value| {
            expected.insert((tag, step), value.as_f64().unwrap() as f32);
        };
        let Some(evaluation) = line.get("evaluation") else {
            let figures = ["loss", "kd", "mlm", "top1", "learning_rate", "lambda", "grad_norm"];
            let sums = ["total_tokens", "total_train_flops", "total_teacher_flops"];
            for name in figures.iter().chain(&sums) {
                add(format!("train/{name}"), &line[*name]);
            }
            let rate = line["tokens"].as_f64().unwrap() / line["seconds"].as_f64().unwrap();
            add("train/tokens_per_second".to_owned(), &rate.into());
            continue;
        };
        for (language, result) in evaluation["languages"].as_object().unwrap() {
            for name in ["student_loss", "student_top1", "student_ece"] {
                add(format!("evaluation/{language}/{name}"), &result[name]);
            }
            for (teacher, result) in result["teachers"].as_object().unwrap() {
                let known = ["loss", "top1", "student_loss", "student_top1", "rdt"];
                let later = ["ece", "student_ece", "agreement", "retained_mass"];
                for name in known.iter().chain(&later) {
                    if result[*name].is_number() {
                        add(format!("evaluation/{language}/{teacher}/{name}"), &result[*name]);
                    }
                }
            }
        }
    }
    expected
}

#[test]
fn tensorboard_shows_what_metrics_jsonl_says_also_after_steps_were_trained_twice() {
    let scene = Scene::new(&configuration());
    let output = scene.run(&["--until-step", "6"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first = files(&scene);
    assert_eq!((first.len(), shown(&first)), (1, expected(&scene)));

    // Back to step 4: steps 5 and 6, and the evaluation after step 6, come again.
    fs::remove_dir_all(scene.path("state/checkpoints/step-6")).unwrap();
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = files(&scene);
    assert_eq!(files.len(), 2);
    assert!(files[1][1].is_session_start && files[1][1].step == 4);
    let of_step_6 = |file: &Vec<Event>| file.iter().filter(|event| event.step == 6).count();
    assert_eq!(files.iter().map(of_step_6).collect::<Vec<_>>(), [2, 2]);
    let shown = shown(&files);
    assert_eq!(shown, expected(&scene));
    let steps: Vec<u64> = shown.keys().filter(|(tag, _)| tag == "train/loss").map(|(_, step)| *step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
}

#[test]
fn training_needs_no_event_files() {
    let without = Scene::new(&format!("{}[ops]\ntensorboard = false\n", configuration()));
    assert!(without.run(&["--until-step", "2"]).status.success());
    assert!(!without.path("state/tensorboard").exists());

    let refused = Scene::new(&configuration());
    fs::create_dir(refused.path("state")).unwrap();
    fs::write(refused.path("state/tensorboard"), "not a folder").unwrap();
    let output = refused.run(&["--until-step", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no TensorBoard files are written"), "{}", text(&output.stderr));
    assert_eq!(refused.metrics().iter().filter(|line| line.get("loss").is_some()).count(), 2);
}

/// The event files are on a small file system of their own, in a mount namespace.
#[test]
fn a_full_disk_costs_event_files_steps_and_training_nothing() {
    let able = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    assert!(
        able.is_ok_and(|status| status.success()),
        "this test mounts a small file system: it needs `unshare` (util-linux) and unprivileged user namespaces"
    );
    // No evaluation between: it is larger, and a step would still find room where it did not.
    let scene = Scene::new(&configuration().replace("every_steps = 6", "every_steps = 12"));
    let [small, copy] = ["state/tensorboard", "copy"].map(|name| scene.path(name));
    fs::create_dir_all(&small).unwrap();
    let script = r#"
        mount -t tmpfs -o size=4k tmpfs "$0" || exit 99
        "$1" run --config "$2"; code=$?
        cat "$0"/events.out.tfevents.* > "$3" && exit $code"#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .args([small.to_str().unwrap(), env!("CARGO_BIN_EXE_mergedistill"), scene.config.to_str().unwrap()])
        .arg(&copy)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr).matches("TensorBoard's file misses steps").count(), 1, "{}", text(&output.stderr));
    assert_eq!(scene.metrics().iter().filter(|line| line.get("loss").is_some()).count(), 12);
    let events = events(&fs::read(copy).unwrap());
    assert!(events.iter().any(|event| event.step == 1) && events.iter().all(|event| event.step < 12));
}

#[test]
fn the_checksum_is_that_of_the_castagnoli_polynomial() {
    assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
}
