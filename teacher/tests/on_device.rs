//! Teachers on the emulated accelerator: the processor's labels, want of room, and an accelerator that fails and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use crossbeam::channel::{bounded, unbounded};
use kernel_emulator::{Emulated, accelerator};
use model::Tokenizer;
use model::device::{Accelerator, DeviceError, DevicePlace, Opener, Precision};
use prometheus::Registry;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::stage::StageControl;
use store::{BatchPlan, Entry, Group, Label, MaskedCopy, Payload, Record, SequenceNumber, SourceCursor, Span};
use teacher::{
    Activity, Labeller, Labelling, LabellingOptions, Runner, RunnerOptions, TailOptions, TeacherError, TeacherWatch,
};

const TOP_K: usize = 8;

fn load(on: Option<DevicePlace>, tail: Option<TailOptions>) -> Result<Runner, TeacherError> {
    // Of the time it runs: the program may be carried to a machine with a GPU.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let path = PathBuf::from(folder).join("../daemon/demo/teachers/demo-en");
    let tokenizer = Tokenizer::load(&path).unwrap();
    Runner::load(&path, &tokenizer, RunnerOptions { name: "en".to_owned(), index: 0, top_k: TOP_K, tail, on })
}

fn place(open: impl Fn() -> Result<Arc<dyn Accelerator>, DeviceError> + Send + Sync + 'static) -> Option<DevicePlace> {
    Some(DevicePlace { opener: Opener::new(open), precision: Precision::F32 })
}

fn copies() -> Vec<MaskedCopy> {
    let copy = |number: u32, length: u32| MaskedCopy {
        teacher: 0,
        token_ids: (0..length).map(|at| 10 + (number * 97 + at * 31) % 900).collect(),
        masked_positions: vec![1, 3, length - 2],
        gold_ids: vec![11, 12, 13 + number],
        label: None,
    };
    vec![copy(0, 9), copy(1, 6), copy(2, 17)]
}

fn assert_same(found: &[Label], expected: &[Label]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.top_ids, expected.top_ids);
        let values = |label: &Label| [&label.top_logits[..], &label.log_sum_exp, &label.gold_logits].concat();
        let pairs = values(found).into_iter().zip(values(expected));
        pairs.for_each(|(found, expected)| assert!((found - expected).abs() < 1e-4, "{found} for {expected}"));
    }
}

#[test]
fn labels_are_those_of_the_processor_also_in_parts() {
    [None, TailOptions::of(3, 1)].into_iter().for_each(check_labels);
}

fn check_labels(tail: Option<TailOptions>) {
    let copies = copies();
    let all: Vec<&MaskedCopy> = copies.iter().collect();
    let expected = load(None, tail).unwrap().label(&all).unwrap();
    let opened = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&opened);
    let whole =
        load(place(move || Ok(kept.lock().unwrap().insert(Arc::new(Emulated::default())).clone())), tail).unwrap();
    assert_same(&whole.label(&all).unwrap(), &expected);
    assert_eq!(whole.take_halvings(), 0);

    // As much as weights and trial take is there; a batch of many sequences needs more.
    let room = opened.lock().unwrap().as_ref().unwrap().peak();
    let small = load(place(move || Ok(Arc::new(Emulated::with_capacity(room)))), tail).unwrap();
    let many: Vec<&MaskedCopy> = std::iter::repeat_n(&all, 12).flatten().copied().collect();
    let expected: Vec<Label> = std::iter::repeat_n(&expected, 12).flatten().cloned().collect();
    assert_same(&small.label(&many).unwrap(), &expected);
    assert!(small.take_halvings() > 0);
}

/// Batches that are begun while others are at work: later ones, also larger ones, do not touch what is still to be fetched.
#[test]
fn batches_are_begun_ahead() {
    let copies = copies();
    let all: Vec<&MaskedCopy> = copies.iter().collect();
    let batches = [&all[1..2], &all[..], &all[2..], &all[..1]];
    let processor = load(None, None).unwrap();
    // On a GPU, if the environment names one: it is as late as it is.
    let is_named = std::env::var_os("MERGEDISTILL_TEST_DEVICE").is_some();
    let open = move || Ok(if is_named { accelerator() } else { Arc::new(Emulated::late()) });
    let runner = load(place(open), None).unwrap();
    assert!(runner.device_bytes() > 0 && processor.device_bytes() == 0);
    let pending: Vec<_> = batches.iter().map(|batch| runner.begin(batch).unwrap()).collect();
    for (batch, pending) in batches.iter().zip(pending) {
        assert_same(&pending.wait().unwrap(), &processor.label(batch).unwrap());
    }
}

fn group(number: u64) -> Group {
    let cursor = SourceCursor::start(Arc::from("en"), Arc::from("en"), 1);
    let record = Record {
        source: Arc::from("en"),
        document: Arc::from("en.txt@0"),
        span: Span { first: number, end: number + 1 },
        language: Arc::from("en"),
        round: 0,
        held_out: false,
        copies: vec![copies()[number as usize % 3].clone()],
        text: None,
    };
    let entry = Entry { sequence: SequenceNumber(number), cursor, payload: Payload::Record(record) };
    Group { entries: vec![entry], batches: vec![BatchPlan { teacher: 0, members: vec![(0, 0)] }] }
}

/// What was begun behind a batch is neither lost nor labelled twice.
#[test]
fn pauses_and_stops_find_a_batch_at_work() {
    let runner = load(place(|| Ok(Arc::new(Emulated::late()))), None).unwrap();
    let (groups_in, groups) = unbounded();
    let (complete_in, complete) = bounded(1);
    let (control, watch) = (StageControl::default(), TeacherWatch::default());
    let options = LabellingOptions {
        depth: 3,
        control: control.clone(),
        recovery_interval: Duration::ZERO,
        pool: model::RolePool::alone("label", 1).unwrap(),
        quarantine: std::env::temp_dir(),
    };
    let runners = vec![(runner, watch.clone())];
    let labelling = Labelling::start(runners, &options, groups, complete_in, &Registry::new()).unwrap();
    (0..40).for_each(|number| groups_in.send(group(number)).unwrap());
    let mut found = vec![complete.recv().unwrap()];
    control.set_paused(true);
    while watch.activity() != Activity::Idle {
        std::thread::yield_now();
    }
    control.set_paused(false);
    found.extend(complete.iter().take(6));
    control.stop();
    found.extend(complete.iter());
    labelling.join().unwrap();
    assert!((7..40).contains(&found.len()), "{}", found.len());
    let processor = load(None, None).unwrap();
    for (entries, number) in found.iter().zip(0..) {
        assert_eq!(entries[0].sequence, SequenceNumber(number));
        let Payload::Record(record) = &entries[0].payload else { panic!("a record") };
        let label = record.copies[0].label.clone().unwrap();
        assert_same(&[label], &processor.label(&[&record.copies[0]]).unwrap());
    }
}

/// The first accelerator fails at its second batch, cannot be opened twice, and is there again.
#[test]
fn a_lost_device_is_waited_for() {
    for first in [Emulated::failing_after(30), Emulated::late_failing_after(30)] {
        waits_for_a_lost_device(first);
    }
}

fn waits_for_a_lost_device(first: Emulated) {
    let (tries, first) = (Arc::new(AtomicUsize::new(0)), Mutex::new(Some(first)));
    let (watch, seen) = (TeacherWatch::default(), Arc::new(Mutex::new(Vec::new())));
    let (counted, looked, noted) = (Arc::clone(&tries), watch.clone(), Arc::clone(&seen));
    let life = first.lock().unwrap().as_ref().unwrap().life();
    let open = move || -> Result<Arc<dyn Accelerator>, DeviceError> {
        match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(Arc::new(first.lock().unwrap().take().unwrap())),
            1 | 2 => {
                noted.lock().unwrap().push(looked.activity());
                assert_eq!(life.strong_count(), 0, "what failed is let go before it is opened anew");
                Err(DeviceError::Failed { device: "gpu".to_owned(), reason: "it is gone".to_owned() })
            }
            _ => Ok(Arc::new(Emulated::default())),
        }
    };
    let runner = load(place(open), None).unwrap();
    let (groups_in, groups) = unbounded();
    let (complete_in, complete) = bounded(1);
    let options = LabellingOptions {
        depth: 2,
        control: StageControl::default(),
        recovery_interval: Duration::ZERO,
        pool: model::RolePool::alone("label", 1).unwrap(),
        quarantine: std::env::temp_dir(),
    };
    let registry = Registry::new();
    let labelling = Labelling::start(vec![(runner, watch)], &options, groups, complete_in, &registry).unwrap();
    (0..4).for_each(|number| groups_in.send(group(number)).unwrap());
    drop(groups_in);
    let found: Vec<Vec<Entry>> = complete.iter().collect();
    labelling.join().unwrap();
    assert_eq!((found.len(), tries.load(Ordering::Relaxed)), (4, 4));
    assert!(seen.lock().unwrap().iter().all(|activity| matches!(activity, Activity::Lost(_))), "{seen:?}");
    let processor = load(None, None).unwrap();
    for entry in found.iter().flatten() {
        let Payload::Record(record) = &entry.payload else { panic!("a record") };
        let label = record.copies[0].label.clone().unwrap();
        assert_same(&[label], &processor.label(&[&record.copies[0]]).unwrap());
    }
    let metric = |name: &str| {
        let family = registry.gather().into_iter().find(|family| family.name() == name).unwrap();
        family.get_metric().to_vec()
    };
    let labelled = metric("mergedistill_teacher_seconds_total");
    let labelled = labelled.iter().find(|metric| metric.get_label().iter().any(|label| label.value() == "labelling"));
    assert!(labelled.unwrap().get_counter().get_value() > 0.0);
    assert!(metric("mergedistill_teacher_device_bytes")[0].get_gauge().get_value() > 0.0);
}
