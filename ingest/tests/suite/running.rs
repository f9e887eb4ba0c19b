use crate::workshop::{Workshop, groups, open, prose};
use crossbeam::channel::{Receiver, bounded};
use ingest::{Ingest, IngestError};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use store::stage::StageControl;
use store::{Group, SequenceNumber};

/// Runs a stage on a thread while `watch` looks on; returns how the stage ended.
pub(crate) fn run(
    ingest: Ingest,
    control: &StageControl,
    gate: &(dyn Fn() -> bool + Sync),
    depth: usize,
    watch: impl FnOnce(Receiver<Group>),
) -> Result<(), IngestError> {
    let (sender, receiver) = bounded(depth);
    thread::scope(|scope| {
        let stage = scope.spawn(move || ingest.run(control, &|_| gate(), sender));
        watch(receiver);
        stage.join().unwrap()
    })
}

fn stage(workshop: &Workshop) -> Ingest {
    let options = workshop.options(vec![workshop.corpus("c", "en", prose(1, 20))]);
    open(&options, &[workshop.word_teacher("words", &["en"])]).unwrap()
}

fn sequences(groups: &[Group]) -> Vec<SequenceNumber> {
    groups.iter().flat_map(|group| group.entries.iter().map(|entry| entry.sequence)).collect()
}

#[test]
fn a_run_hands_on_every_group_and_hangs_up() {
    let workshop = Workshop::new();
    let expected = groups(stage(&workshop));
    assert!(expected.len() > 3);
    run(stage(&workshop), &StageControl::default(), &|| true, 1, |receiver| {
        let received: Vec<Group> = receiver.iter().collect();
        assert_eq!(sequences(&received), sequences(&expected));
    })
    .unwrap();
}

#[test]
fn a_closed_gate_holds_groups_back() {
    let workshop = Workshop::new();
    let (open, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let gate = || {
        asked.fetch_add(1, Ordering::SeqCst);
        open.load(Ordering::SeqCst)
    };
    run(stage(&workshop), &StageControl::default(), &gate, 100, |receiver| {
        while asked.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        assert!(receiver.is_empty());
        open.store(true, Ordering::SeqCst);
        assert!(receiver.iter().count() > 3);
    })
    .unwrap();
}

#[test]
fn a_stop_ends_the_stage_wherever_it_waits() {
    let workshop = Workshop::new();
    for (gate, depth) in [(true, 1), (false, 1), (true, 0)] {
        let control = StageControl::default();
        run(stage(&workshop), &control, &|| gate, depth, |receiver| {
            while depth == 1 && gate && !receiver.is_full() {
                thread::yield_now();
            }
            control.stop();
        })
        .unwrap();
    }
    let paused = StageControl::default();
    paused.set_paused(true);
    run(stage(&workshop), &paused, &|| true, 100, |receiver| {
        paused.stop();
        assert_eq!(receiver.iter().count(), 0, "a paused stage makes nothing, and no short group when it stops");
    })
    .unwrap();
}

#[test]
fn a_group_that_is_not_complete_is_dropped_at_a_stop() {
    let workshop = Workshop::new();
    let mut corpus = workshop.corpus("c", "en", prose(1, 20));
    corpus.rounds = u32::MAX;
    let mut options = workshop.options(vec![corpus]);
    options.group_tokens = usize::MAX;
    options.max_sequence_length = 256;
    let teachers = ["a", "b", "c"].map(|name| workshop.letter_teacher(name, &["en"]));
    let ingest = open(&options, &teachers).unwrap();
    let status = ingest.status();
    let examples = || serde_json::to_value(&*status).unwrap()["corpora"][0]["examples"].as_u64().unwrap();
    let control = StageControl::default();
    run(ingest, &control, &|| true, 10, |receiver| {
        while examples() < 3 {
            thread::yield_now();
        }
        control.stop();
        assert_eq!(receiver.iter().count(), 0);
    })
    .unwrap();
}

#[test]
fn a_receiver_that_goes_away_ends_the_stage() {
    let workshop = Workshop::new();
    run(stage(&workshop), &StageControl::default(), &|| true, 1, drop).unwrap();
}

#[test]
fn metrics_count_what_was_made() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("c", "en", "menu\n\nthe row\n\n\u{436}\n")]);
    let teachers = vec![workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
    let registry = Registry::new();
    let open = || Ingest::open(options.clone(), teachers.clone(), &BTreeMap::new(), SequenceNumber(0), &registry);
    run(open().unwrap(), &StageControl::default(), &|| true, 10, |receiver| {
        assert_eq!(receiver.iter().count(), 1);
    })
    .unwrap();
    let value = |name: &str, label: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let labelled =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|pair| pair.value() == label);
        family.get_metric().iter().find(labelled).unwrap().get_counter().get_value()
    };
    assert_eq!(value("mergedistill_ingest_documents_total", "c"), 3.0);
    assert_eq!(value("mergedistill_ingest_examples_total", "en"), 2.0);
    assert_eq!(value("mergedistill_ingest_characters_total", "c"), 11.0);
    assert_eq!(value("mergedistill_ingest_tokens_total", "words"), 2.0 * 2.0 + 1.0 + 2.0 + 2.0);
    assert_eq!(value("mergedistill_ingest_tokens_total", "letters"), 2.0 * 2.0 + 4.0 + 6.0);
    assert_eq!(value("mergedistill_stage_items_in_total", "ingest"), 4.0);
    assert_eq!(value("mergedistill_stage_items_out_total", "ingest"), 4.0);
    assert!(matches!(open(), Err(IngestError::Metrics(_))));
}
