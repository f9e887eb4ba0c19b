//! Evaluation, training's ends, and export, on a small log.
#![allow(clippy::unwrap_used)]

mod scene;

use candle_core::{Device, IndexOp};
use model::{Bert, PackedBatch};
use scene::{Example, Scene, TEACHER_LOSS, copy_folder, example, metrics, mixture};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use store::{MaskedCopy, Payload, SequenceNumber};
use trainer::{EvaluationReport, Event, Outcome, TeacherEvaluation, TrainerError, Vocabulary};

/// Held-out text of English that no teacher has seen, and held-out documents of both languages.
fn scene_with_unseen_text() -> Scene {
    let unseen: Vec<Example> = (0..4).map(|_| example("evaluate/en")).collect();
    Scene::with_log(&[unseen, mixture(40)].concat())
}

fn evaluations(scene: &Scene, options: &trainer::TrainerOptions) -> Vec<EvaluationReport> {
    let mut reports = Vec::new();
    let outcome = scene.run(options, |event| {
        if let Event::Evaluation(report) = event {
            reports.push(report);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    reports
}

#[test]
fn it_is_made_at_the_start_on_schedule_and_at_the_end() {
    let scene = scene_with_unseen_text();
    let mut options = scene.options("state");
    (options.train.steps, options.train.learning_rate, options.evaluation.every_steps) = (Some(50), 3e-2, 20);
    let reports = evaluations(&scene, &options);
    assert_eq!(reports.iter().map(|report| report.step).collect::<Vec<_>>(), [0, 20, 40, 50]);
    for report in &reports {
        let english = &report.languages["en"];
        assert_eq!((english.examples, english.positions), (4, 16), "the unseen text, by both teachers");
        assert_eq!(english.teachers.keys().collect::<Vec<_>>(), ["first", "second"]);
        assert_eq!(report.languages["de"].teachers.keys().collect::<Vec<_>>(), ["second"]);
        assert_eq!(report.held_out.keys().collect::<Vec<_>>(), ["en"], "German has no unseen text");
        for teacher in english.teachers.values() {
            assert!((teacher.loss - f64::from(TEACHER_LOSS)).abs() < 1e-6 && teacher.top1 == 1.0);
            assert_eq!(teacher.rdt, Some(100.0 * (teacher.student_top1 - 1.0)));
        }
    }
    let (first, last) = (&reports[0].languages["en"], &reports[3].languages["en"]);
    assert!(last.student_loss < first.student_loss - 0.1, "{} → {}", first.student_loss, last.student_loss);

    let lines: Vec<_> =
        metrics(&options.state_dir).into_iter().filter(|line| line.get("evaluation").is_some()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        lines[3]["evaluation"]["languages"]["de"]["teachers"]["second"]["rdt"].as_f64(),
        reports[3].languages["de"].teachers["second"].rdt
    );
    // The same by command, later; and document by document.
    assert_eq!(trainer::evaluate_newest(&options, &scene.reader()).unwrap(), reports[3]);
    let documents = trainer::evaluate_newest_documents(&options, &scene.reader()).unwrap();
    for (unseen, language, whole) in [
        (true, "en", &reports[3].languages["en"]),
        (false, "en", &reports[3].held_out["en"]),
        (false, "de", &reports[3].languages["de"]),
    ] {
        let of_set: Vec<_> = documents.iter().filter(|one| one.unseen == unseen && one.language == language).collect();
        assert!(of_set.len() > 1, "several documents");
        let positions: u64 = of_set.iter().map(|one| one.scores.positions).sum();
        let loss: f64 = of_set.iter().map(|one| one.scores.student_loss * one.scores.positions as f64).sum();
        assert_eq!(positions, whole.positions);
        assert!((loss / positions as f64 - whole.student_loss).abs() < 1e-6, "{language} {unseen}");
    }
}

#[test]
fn it_does_not_disturb_training() {
    let scene = Scene::with_log(&mixture(40));
    let often = scene.options("often");
    let mut never = scene.options("never");
    (never.evaluation.every_steps, never.evaluation.max_examples) = (0, 0);
    scene.run(&often, |_| ()).unwrap();
    scene.run(&never, |_| ()).unwrap();
    assert!(scene::checkpoint(&often.state_dir, 9) == scene::checkpoint(&never.state_dir, 9));
}

/// What is compared position by position, each written down.
#[derive(Default)]
struct Plain {
    /// (probability of the best guess, whether it is right).
    teacher: Vec<(f64, bool)>,
    student: Vec<(f64, bool)>,
    agreed: usize,
    masses: Vec<f64>,
}

impl Plain {
    fn add(&mut self, copy: &MaskedCopy, gold_ids: &[u32], log_p: &[Vec<f32>], student_id: impl Fn(u32) -> u32) {
        let label = copy.label.as_ref().unwrap();
        let entries = label.top_ids.chunks(label.top_k).zip(label.top_logits.chunks(label.top_k));
        for (((ids, logits), z), (gold, log_p)) in entries.zip(&label.log_sum_exp).zip(gold_ids.iter().zip(log_p)) {
            let p = |logit: f32| f64::from(logit - z).exp();
            self.masses.push(logits.iter().copied().map(p).sum());
            self.teacher.push((p(logits[0]), student_id(ids[0]) == *gold));
            let best = (0..log_p.len()).rev().max_by(|a, b| log_p[*a].total_cmp(&log_p[*b])).unwrap();
            self.student.push((f64::from(log_p[best]).exp(), best == *gold as usize));
            self.agreed += usize::from(best == student_id(ids[0]) as usize);
        }
    }

    fn check(&self, pair: &TeacherEvaluation) {
        let positions = self.masses.len() as f64;
        let close = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-5, "{found:?} {expected}")
        };
        close(pair.retained_mass, self.masses.iter().sum::<f64>() / positions);
        close(pair.agreement, self.agreed as f64 / positions);
        close(pair.ece, ece(&self.teacher));
        close(pair.student_ece, ece(&self.student));
        assert!(pair.retained_mass < Some(1.0 - 1e-3) && pair.ece > Some(1e-3) && pair.student_ece > Some(1e-3));
    }
}

/// Σ over 15 bins of (predictions of the bin / all) · |accuracy − mean confidence|.
fn ece(predictions: &[(f64, bool)]) -> f64 {
    let mut gaps = [0.0; 15];
    for (confidence, correct) in predictions {
        let bin = (0..15).find(|bin| *confidence <= f64::from(bin + 1) / 15.0).unwrap_or(14);
        gaps[bin as usize] += f64::from(u8::from(*correct)) - confidence;
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / predictions.len() as f64
}

/// One copy at a time, with candle's own log-softmax over all logits.
#[test]
fn figures_agree_with_a_plain_computation() {
    let scene = scene_with_unseen_text();
    let options = scene.options("state");
    scene.run(&options, |_| ()).unwrap();
    let report = trainer::evaluate_newest(&options, &scene.reader()).unwrap();
    let bert = Bert::load(&options.state_dir.join("checkpoints/step-9"), &Device::Cpu).unwrap();
    let vocabulary = Vocabulary::load(&options.state_dir.join("vocab")).unwrap();
    let reader = scene.reader();

    let mut sums: BTreeMap<u16, (f64, f64, f64)> = BTreeMap::new();
    let mut plain: BTreeMap<u16, Plain> = BTreeMap::new();
    for sequence in 0..4 {
        let entry = reader.entry(SequenceNumber(sequence)).unwrap();
        let Payload::Record(record) = &entry.payload else { panic!("entry {sequence} is no record") };
        for copy in &record.copies {
            let map = &vocabulary.maps()[usize::from(copy.teacher)];
            let ids = |ids: &[u32]| -> Vec<u32> { ids.iter().map(|id| map.student_id(*id).unwrap()).collect() };
            let batch = PackedBatch {
                token_ids: ids(&copy.token_ids),
                lengths: vec![copy.token_ids.len()],
                masked_rows: copy.masked_positions.clone(),
                ..PackedBatch::default()
            };
            let hidden = bert.transform_masked(&batch, None).unwrap();
            let (weight, bias) = bert.decoder();
            let logits = hidden.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap();
            let log_p = candle_nn::ops::log_softmax(&logits, 1).unwrap();
            let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
            let sums = sums.entry(copy.teacher).or_default();
            for (row, gold) in ids(&copy.gold_ids).into_iter().enumerate() {
                sums.0 -= f64::from(log_p.i((row, gold as usize)).unwrap().to_scalar::<f32>().unwrap());
                sums.1 += f64::from(u8::from(best[row] == gold));
                sums.2 += 1.0;
            }
            let rows = log_p.to_vec2::<f32>().unwrap();
            plain.entry(copy.teacher).or_default().add(copy, &ids(&copy.gold_ids), &rows, |id| ids(&[id])[0]);
        }
    }
    for (teacher, (loss, correct, positions)) in &sums {
        let name = &vocabulary.maps()[usize::from(*teacher)].teacher;
        let pair = &report.languages["en"].teachers[name];
        assert!(
            (pair.student_loss - loss / positions).abs() < 1e-5,
            "{name}: {} for {}",
            pair.student_loss,
            loss / positions
        );
        assert_eq!((pair.student_top1, pair.positions as f64), (correct / positions, *positions));
        plain[teacher].check(pair);
    }
    let (loss, positions) = sums.values().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.2));
    assert!((report.languages["en"].student_loss - loss / positions).abs() < 1e-5);
}

#[test]
fn training_ends_when_records_run_out() {
    let scene = Scene::with_log(&mixture(24));
    let mut options = scene.options("state");
    options.train.steps = Some(100);
    options.train.max_passes = 1;
    let Outcome::Exhausted { step } = scene.run(&options, |_| ()).unwrap() else { panic!("it found more") };
    assert!((5..15).contains(&step), "{step}");
    assert!(options.state_dir.join(format!("checkpoints/step-{step}")).is_dir());
    assert_eq!(scene.run(&options, |_| ()).unwrap(), Outcome::Exhausted { step });
}

#[test]
fn training_that_diverges_ends_with_an_error() {
    let scene = Scene::with_log(&mixture(300));
    let mut options = scene.options("state");
    (options.train.learning_rate, options.train.clip_norm) = (1e38, 0.0);
    let mut steps = 0;
    let error = scene.run(&options, |event| steps += usize::from(matches!(event, Event::Step(_)))).unwrap_err();
    assert!(matches!(error, TrainerError::Diverged { step: 0, .. }), "{error}");
    assert!(steps < 60, "{steps} steps");
}

#[test]
fn an_export_is_the_student_and_replaces_only_exports() {
    let scene = Scene::with_log(&mixture(40));
    for (name, embedding_size) in [("plain", 8), ("factorised", 4)] {
        let mut options = scene.options(name);
        options.student.embedding_size = embedding_size;
        let out = scene.path("exports").join(name);
        let error = trainer::export_newest(&options.state_dir, &out).unwrap_err();
        assert!(matches!(error, TrainerError::NoCheckpoint { .. }), "{error}");
        scene.run(&options, |_| ()).unwrap();
        assert_eq!(trainer::export_newest(&options.state_dir, &out).unwrap(), 9);
        assert_eq!(trainer::export_newest(&options.state_dir, &out).unwrap(), 9, "an export may be replaced");
        let beside: Vec<_> =
            fs::read_dir(out.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(beside.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{beside:?}");
        assert_same_logits(&out, &options.state_dir.join("checkpoints/step-9"));
        for file in
            ["tokenizer.json", "vocab.txt", "tokenizers/first/tokenizer.json", "tokenizers/second/tokenizer.json"]
        {
            assert!(out.join(file).is_file(), "{file}");
        }
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.starts_with("---\nlanguage:\n- \""), "{card}");
        for word in ["| first |", "| second |", "`tokenizers/first`", ": step 9.", "## Beside its teachers"] {
            assert!(card.contains(word), "`{word}`: {card}");
        }
        fs::remove_file(out.join("mergedistill.json")).unwrap();
        let error = trainer::export_newest(&options.state_dir, &out).unwrap_err();
        assert!(matches!(error, TrainerError::ExportTarget { .. }), "{error}");
        let file = out.join("config.json");
        assert!(matches!(trainer::export_newest(&options.state_dir, &file), Err(TrainerError::ExportTarget { .. })));
    }
}

#[test]
fn an_export_survives_a_replacement_that_fails() {
    let scene = Scene::with_log(&mixture(40));
    let options = scene.options("state");
    scene.run(&options, |_| ()).unwrap();
    let (out, replaced) = (scene.path("out"), scene.path(".out.replaced"));
    let export = || trainer::export_newest(&options.state_dir, &out);
    export().unwrap();
    // A crash between the two renames, then an export that fails for want of a tokenizer.
    fs::rename(&out, &replaced).unwrap();
    let words = options.state_dir.join("vocab/hugging-face/vocab.txt");
    let content = fs::read(&words).unwrap();
    fs::remove_file(&words).unwrap();
    assert!(matches!(export(), Err(TrainerError::Io { .. })));
    assert!(out.join("model.safetensors").is_file() && !replaced.exists(), "the earlier one is back");
    fs::write(&words, content).unwrap();
    // What is not an export is not removed.
    for name in [".out.replaced", ".out.partial"] {
        let folder = scene.path(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mine"), "").unwrap();
        assert!(matches!(export(), Err(TrainerError::ExportTarget { path }) if path == folder));
        assert!(folder.join("mine").is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
    assert_eq!(export().unwrap(), 9);
}

fn assert_same_logits(one: &Path, other: &Path) {
    let batch = PackedBatch {
        token_ids: vec![2, 9, 4, 7, 3],
        lengths: vec![5],
        masked_rows: vec![2],
        ..PackedBatch::default()
    };
    let logits = |dir: &Path| -> Vec<f32> {
        let bert = Bert::load(dir, &Device::Cpu).unwrap();
        let hidden = bert.transform_masked(&batch, None).unwrap();
        let logits = hidden.matmul(&bert.decoder().0.t().unwrap()).unwrap().broadcast_add(bert.decoder().1).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(logits(one), logits(other));
}

#[test]
fn a_new_teacher_extends_the_student() {
    let scene = Scene::with_log(&(0..24).map(|_| example("en")).collect::<Vec<_>>());
    let mut options = scene.options("state");
    options.train.until_step = Some(3);
    scene.run(&options, |_| ()).unwrap();
    let before = Bert::load(&options.state_dir.join("checkpoints/step-3"), &Device::Cpu).unwrap();

    let mut grown = options.clone();
    grown.state_dir = scene.path("grown");
    copy_folder(&options.state_dir, &grown.state_dir);
    grown.teachers.push(scene.third_teacher());
    grown.train.until_step = None;
    // An evaluation by command looks at the run and leaves it alone.
    let words = || fs::read(grown.state_dir.join("vocab/vocab.txt")).unwrap();
    let old_words = words();
    trainer::evaluate_newest(&grown, &scene.reader()).unwrap();
    assert_eq!(words(), old_words);
    // The vocabulary grows when training begins; until there is a checkpoint, it is not that of the newest one.
    drop(scene.open(&grown).unwrap());
    assert_ne!(words(), old_words);
    let error = trainer::export_newest(&grown.state_dir, &scene.path("out")).unwrap_err().to_string();
    assert!(error.contains("write a checkpoint first"), "{error}");
    assert!(!scene.path("out").exists() && !scene.path(".out.partial").exists());
    assert_eq!(scene.run(&grown, |_| ()).unwrap(), Outcome::Finished);
    let after = Bert::load(&grown.state_dir.join("checkpoints/step-9"), &Device::Cpu).unwrap();
    assert_eq!(after.configuration.vocabulary_size, before.configuration.vocabulary_size + 1);
    assert!(fs::read_to_string(grown.state_dir.join("journal")).unwrap().contains("\"teachers\":[\"third\"]"));
    // The way back is closed.
    grown.teachers.pop();
    assert!(scene.open(&grown).is_err());
}
