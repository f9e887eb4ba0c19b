//! Labelling with real teachers: what comes out is what one runner alone would say, in the order that went in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use crossbeam::channel::{bounded, unbounded};
use model::Tokenizer;
use model::random::Philox;
use prometheus::Registry;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use store::stage::StageControl;
use store::{BatchPlan, Entry, Group, MaskedCopy, Payload, Record, SequenceNumber, SourceCursor, Span};
use teacher::{
    Labeller, Labelling, LabellingOptions, PendingLabels, Runner, RunnerOptions, TailOptions, TeacherError,
    TeacherWatch,
};

const TEACHERS: [&str; 2] = ["demo-en", "demo-en-de"];

fn runner(index: usize) -> Runner {
    load(index, 8).unwrap()
}

fn load(index: usize, top_k: usize) -> Result<Runner, TeacherError> {
    load_with(index, top_k, None)
}

fn load_with(index: usize, top_k: usize, tail: Option<TailOptions>) -> Result<Runner, TeacherError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/demo/teachers").join(TEACHERS[index]);
    let tokenizer = Tokenizer::load(&path).unwrap();
    let options = RunnerOptions { name: TEACHERS[index].to_owned(), index: index as u16, top_k, tail, on: None };
    Runner::load(&path, &tokenizer, options)
}

fn watched() -> Vec<(Runner, TeacherWatch)> {
    (0..2).map(|index| (runner(index), TeacherWatch::default())).collect()
}

fn options(depth: usize, control: StageControl, notes: &Path) -> LabellingOptions {
    LabellingOptions { depth, control, recovery_interval: Duration::ZERO, pool: pool(), quarantine: notes.to_owned() }
}

/// Fewer threads than runners, so that they share.
fn pool() -> Arc<model::RolePool> {
    model::RolePool::alone("label", 2).unwrap()
}

/// A copy of random tokens, three of them masked.
fn copy(teacher: usize, length: usize, seed: u64) -> MaskedCopy {
    let stream = Philox::new(seed, "test", &[]);
    let token_ids: Vec<u32> = (0..length as u64).map(|at| 10 + stream.below(3000, at, 0) as u32).collect();
    let masked_positions = vec![1, 3, length as u32 - 2];
    let gold_ids = masked_positions.iter().map(|&at| token_ids[at as usize]).collect();
    MaskedCopy { teacher: teacher as u16, token_ids, masked_positions, gold_ids, label: None }
}

/// A group of three records with a copy per teacher, and an entry that holds none.
fn group(number: u64) -> Group {
    let cursor = SourceCursor::start(Arc::from("en"), Arc::from("en"), 1);
    let mut group = Group::default();
    for place in 0..3 {
        let length = 8 + ((number * 7 + place * 5) % 20) as usize;
        let record = Record {
            source: Arc::from("en"),
            document: Arc::from("en.txt@0"),
            span: Span { first: number, end: number + 1 },
            language: Arc::from("en"),
            round: 0,
            held_out: false,
            copies: (0..2).map(|teacher| copy(teacher, length, number * 100 + place)).collect(),
            text: None,
        };
        let sequence = SequenceNumber(number * 4 + place);
        group.entries.push(Entry { sequence, cursor: cursor.clone(), payload: Payload::Record(record) });
    }
    group.entries.push(Entry { sequence: SequenceNumber(number * 4 + 3), cursor, payload: Payload::End });
    for teacher in 0..2 {
        group.batches.push(BatchPlan { teacher, members: vec![(2, u32::from(teacher)), (0, u32::from(teacher))] });
        group.batches.push(BatchPlan { teacher, members: vec![(1, u32::from(teacher))] });
    }
    group
}

#[test]
fn groups_come_out_complete_and_in_order() {
    let (groups_in, groups) = bounded(1);
    let (complete_in, complete) = bounded(1);
    let options = options(3, StageControl::default(), &std::env::temp_dir());
    let registry = Registry::new();
    let labelling = Labelling::start(watched(), &options, groups, complete_in, &registry).unwrap();
    let feeder = std::thread::spawn(move || (0..9).for_each(|number| groups_in.send(group(number)).unwrap()));
    let out: Vec<Vec<Entry>> = complete.iter().collect();
    feeder.join().unwrap();
    labelling.join().unwrap();
    let by_teacher = |name: &str| -> Vec<f64> {
        let family = registry.gather().into_iter().find(|family| family.name() == name).unwrap();
        let values = family.get_metric().iter();
        values.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).collect()
    };
    assert_eq!(by_teacher("mergedistill_teacher_queued_copies_total"), [27.0, 27.0], "three in each group");
    assert_eq!(by_teacher("mergedistill_teacher_copies_total"), [27.0, 27.0]);
    assert_eq!(by_teacher("mergedistill_teacher_copies_in_flight"), [0.0, 0.0]);
    assert!(by_teacher("mergedistill_teacher_last_progress_timestamp_seconds").iter().all(|seconds| *seconds > 0.0));

    assert_eq!(out.len(), 9);
    let alone = [runner(0), runner(1)];
    for (entries, number) in out.iter().zip(0..) {
        let expected = group(number);
        assert_eq!(entries.len(), 4);
        for plan in &expected.batches {
            let of = |entries: &[Entry], (entry, copy): (u32, u32)| match &entries[entry as usize].payload {
                Payload::Record(record) => record.copies[copy as usize].clone(),
                _ => panic!("no record"),
            };
            let unlabelled: Vec<MaskedCopy> =
                plan.members.iter().map(|&member| of(&expected.entries, member)).collect();
            let labels = alone[plan.teacher as usize].label(&unlabelled.iter().collect::<Vec<_>>()).unwrap();
            for (&member, label) in plan.members.iter().zip(labels) {
                assert_eq!(of(entries, member).label, Some(label), "group {number}, member {member:?}");
            }
        }
        assert!(entries.iter().zip(0..).all(|(entry, place)| entry.sequence.0 == number * 4 + place));
    }
    check_costs_and_masses(&registry, &out, &alone);
}

/// What was counted of the labels, against the labels themselves.
fn check_costs_and_masses(registry: &Registry, out: &[Vec<Entry>], runners: &[Runner]) {
    let families = registry.gather();
    let find = |name: &str| families.iter().find(|family| family.name() == name).unwrap();
    let (flops, masses) = (find("mergedistill_teacher_flops_total"), find("mergedistill_teacher_retained_mass_ratio"));
    for (runner, teacher) in runners.iter().zip(0..) {
        let records = out.iter().flatten().filter_map(|entry| match &entry.payload {
            Payload::Record(record) => Some(&record.copies[teacher]),
            _ => None,
        });
        let copies: Vec<&MaskedCopy> = records.collect();
        let sizes = copies.iter().map(|copy| (copy.token_ids.len(), copy.masked_positions.len()));
        let expected = runner.configuration().flops(sizes) as f64;
        assert_eq!(flops.get_metric()[teacher].get_counter().get_value(), expected);
        let mut sum = 0.0;
        for label in copies.iter().filter_map(|copy| copy.label.as_ref()) {
            for (logits, log_sum_exp) in label.top_logits.chunks(label.top_k).zip(&label.log_sum_exp) {
                sum += logits.iter().map(|logit| f64::from(*logit - log_sum_exp).exp()).sum::<f64>();
            }
        }
        let metric = &masses.get_metric()[teacher];
        assert_eq!(metric.get_histogram().get_sample_count(), 3 * copies.len() as u64);
        assert!((metric.get_histogram().get_sample_sum() - sum).abs() < 1e-4 && sum > 1.0);
        let labels: Vec<&str> = metric.get_label().iter().map(prometheus::proto::LabelPair::value).collect();
        assert_eq!(labels, ["en", TEACHERS[teacher]], "language and teacher");
    }
}

#[test]
fn the_stage_ends_when_nobody_takes_its_groups() {
    let (groups_in, groups) = unbounded();
    let (complete_in, complete) = bounded(1);
    drop(complete);
    let options = options(2, StageControl::default(), &std::env::temp_dir());
    let labelling = Labelling::start(watched(), &options, groups, complete_in, &Registry::new()).unwrap();
    for number in 0..5 {
        let _ = groups_in.send(group(number)); // The stage may have ended already.
    }
    drop(groups_in);
    labelling.join().unwrap();
}

#[test]
fn a_stop_leaves_no_group_incomplete() {
    let (groups_in, groups) = bounded(1);
    let (complete_in, complete) = bounded(1);
    let control = StageControl::default();
    let options = options(2, control.clone(), &std::env::temp_dir());
    let labelling = Labelling::start(watched(), &options, groups, complete_in, &Registry::new()).unwrap();
    // Goes on sending for as long as anybody receives: the stop alone has to end the stage.
    let feeder = std::thread::spawn(move || (0..).map(group).all(|group| groups_in.send(group).is_ok()));
    let first = complete.recv().unwrap();
    control.stop();
    let out: Vec<Vec<Entry>> = std::iter::once(first).chain(complete.iter()).collect();
    labelling.join().unwrap();
    assert!(!feeder.join().unwrap());
    for (entries, number) in out.iter().zip(0..) {
        assert_eq!(entries[0].sequence.0, number * 4);
        for entry in entries {
            if let Payload::Record(record) = &entry.payload {
                assert!(record.copies.iter().all(|copy| copy.label.is_some()), "group {number}");
            }
        }
    }
}

#[test]
fn a_batch_composition_matters_little_and_its_order_not_at_all() {
    let runner = runner(0);
    let copies: Vec<MaskedCopy> = (0..6).map(|seed| copy(0, 9 + seed as usize * 3, seed)).collect();
    let together = runner.label(&copies.iter().collect::<Vec<_>>()).unwrap();
    for (copy, label) in copies.iter().zip(&together) {
        let alone = &runner.label(&[copy]).unwrap()[0];
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(close(&alone.log_sum_exp, &label.log_sum_exp) && close(&alone.top_logits, &label.top_logits));
        assert_eq!(label.positions(), copy.masked_positions.len());
    }
}

#[test]
fn more_labels_than_words_is_an_error_that_says_so() {
    let error = load(0, 5000).unwrap_err().to_string();
    assert!(error.contains("demo-en") && error.contains("4000") && error.contains("store.top_k"), "{error}");
}

#[test]
fn tails_are_drawn_by_seed_teacher_copy_and_position_alone() {
    let with = |seed| load_with(0, 8, Some(TailOptions { samples: 4, seed })).unwrap();
    let (sampled, best) = (with(1), runner(0));
    let copies: Vec<MaskedCopy> = (0..5).map(|seed| copy(0, 20 + seed as usize, seed)).collect();
    let label = |runner: &Runner, copies: &[&MaskedCopy]| runner.label(copies).unwrap();
    let all: Vec<&MaskedCopy> = copies.iter().collect();
    let (together, without) = (label(&sampled, &all), label(&best, &all));
    assert_eq!(together, label(&sampled, &all));
    let ids = |labels: &[store::Label]| labels.iter().map(|label| label.top_ids.clone()).collect::<Vec<_>>();
    assert_ne!(ids(&together), ids(&label(&with(2), &all)), "another seed");
    for (number, (label_of, best)) in together.iter().zip(&without).enumerate() {
        // Alone and in another order: rounding may differ, what is drawn does not.
        let alone = label(&sampled, &[&copies[number]]).remove(0);
        assert_eq!(alone.top_ids, label_of.top_ids, "copy {number}");
        assert_eq!(label_of.head(4), best.head(4), "the head is the teacher's own");
        for position in 0..best.positions() {
            let (without, of_head) = (label_of.retained_mass(position, 4), best.head(4).retained_mass(position, 0));
            assert_eq!(without, of_head, "what was drawn is no retained mass");
            assert!(label_of.retained_mass(position, 0) > without);
        }
        assert_eq!((&label_of.log_sum_exp, &label_of.gold_logits), (&best.log_sum_exp, &best.gold_logits));
        assert_ne!(label_of.top_ids, best.top_ids, "something is drawn");
        for (logits, sum) in label_of.top_logits.chunks(8).zip(&label_of.log_sum_exp) {
            let mass: f64 = logits.iter().map(|logit| f64::from(logit - sum).exp()).sum();
            assert!((mass - 1.0).abs() < 1e-5, "copy {number}: {mass}");
        }
    }
}

/// Refuses some batches as workers do that have tried time after time.
struct Refusing {
    runner: Runner,
    refuses: fn(usize) -> bool,
    batches: AtomicUsize,
}

impl Labeller for Refusing {
    fn name(&self) -> &str {
        self.runner.name()
    }

    fn index(&self) -> u16 {
        self.runner.index()
    }

    fn begin(&self, copies: &[&MaskedCopy], end: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        if (self.refuses)(self.batches.fetch_add(1, Ordering::SeqCst)) {
            let (teacher, reason) = (self.name().to_owned(), "worker one: no memory".to_owned());
            return Err(TeacherError::Worker { teacher, reason });
        }
        Labeller::begin(&self.runner, copies, end)
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        Labeller::flops(&self.runner, copies)
    }
}

/// What comes of six groups, two batches of each the teacher's that refuses some.
fn refusing(refuses: fn(usize) -> bool, notes: &Path) -> (Vec<Vec<Entry>>, Result<(), TeacherError>) {
    let (groups_in, groups) = unbounded();
    let (complete_in, complete) = unbounded();
    let options = options(1, StageControl::default(), notes);
    (0..6).for_each(|number| groups_in.send(group(number)).unwrap());
    drop(groups_in);
    let refuser = Refusing { runner: runner(0), refuses, batches: AtomicUsize::new(0) };
    let runners: Vec<(Arc<dyn Labeller>, TeacherWatch)> =
        vec![(Arc::new(refuser), TeacherWatch::default()), (Arc::new(runner(1)), TeacherWatch::default())];
    let labelling = Labelling::start(runners, &options, groups, complete_in, &Registry::new()).unwrap();
    (complete.iter().collect(), labelling.join())
}

#[test]
fn a_batch_that_nobody_can_label_goes_without_and_is_noted() {
    let notes = tempfile::tempdir().unwrap();
    // The second group's first batch: records 2 and 0.
    let (out, ended) = refusing(|batch| batch == 2, notes.path());
    ended.unwrap();
    let labelled = |group: usize, record: usize, teacher: usize| match &out[group][record].payload {
        Payload::Record(record) => record.copies[teacher].label.is_some(),
        _ => panic!("no record"),
    };
    for (group, record) in (0..6).flat_map(|group| (0..3).map(move |record| (group, record))) {
        assert_eq!(labelled(group, record, 0), group != 1 || record == 1, "group {group}, record {record}");
        assert!(labelled(group, record, 1));
    }
    let files: Vec<_> = std::fs::read_dir(notes.path()).unwrap().collect();
    let [note] = &files[..] else { panic!("{} notes", files.len()) };
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(note.as_ref().unwrap().path()).unwrap()).unwrap();
    assert_eq!((&note["teacher"], &note["error"]), (&"demo-en".into(), &"worker one: no memory".into()));
    let sequences: Vec<_> = note["examples"].as_array().unwrap().iter().map(|one| one["sequence"].as_u64()).collect();
    assert_eq!(sequences, [Some(6), Some(4)]);
}

#[test]
fn a_teacher_whose_batches_all_fail_ends_labelling() {
    let notes = tempfile::tempdir().unwrap();
    let (out, ended) = refusing(|batch| batch >= 4, notes.path());
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("4 batches in a row failed; the last one: worker one: no memory"), "{error}");
    assert_eq!((out.len(), std::fs::read_dir(notes.path()).unwrap().count()), (3, 3));
}
