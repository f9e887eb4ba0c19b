//! Teachers that stall: their groups wait for them, or are completed without them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use prometheus::Registry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::stage::StageControl;
use store::{BatchPlan, Entry, Group, Label, MaskedCopy, Payload, Record, SequenceNumber, SourceCursor, Span};
use teacher::{
    Activity, Labeller, Labelling, LabellingOptions, OnStall, PendingLabels, StallOptions, TeacherError, TeacherWatch,
};

/// More than any test needs.
const DEADLINE: Duration = Duration::from_secs(60);
/// Groups inside at most.
const DEPTH: usize = 3;
const RECORDS: u64 = 2;

/// Says of each copy what its first token is; a teacher with a gate, only once it is told to, batch by batch.
struct Gated {
    index: u16,
    gate: Option<Receiver<()>>,
}

impl Labeller for Gated {
    fn name(&self) -> &str {
        ["quick", "slow"][usize::from(self.index)]
    }

    fn index(&self) -> u16 {
        self.index
    }

    fn begin(&self, copies: &[&MaskedCopy], _: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv(); // Disconnected: the gate is open for good.
        }
        Ok(PendingLabels::ready(copies.iter().map(|copy| label_of(copy)).collect()))
    }

    fn flops(&self, copies: &[&MaskedCopy]) -> u64 {
        copies.len() as u64
    }
}

fn label_of(copy: &MaskedCopy) -> Label {
    let first = copy.token_ids[0];
    let value = vec![first as f32];
    Label {
        top_k: 1,
        top_ids: vec![first],
        top_logits: value.clone(),
        log_sum_exp: value.clone(),
        gold_logits: value,
        ..Label::default()
    }
}

fn group(number: u64) -> Group {
    let cursor = SourceCursor::start(Arc::from("en"), Arc::from("en"), 1);
    let mut group = Group::default();
    for place in 0..RECORDS {
        let copy = |teacher| MaskedCopy {
            teacher,
            token_ids: vec![(number * RECORDS + place) as u32; 8],
            masked_positions: vec![1],
            gold_ids: vec![9],
            label: None,
        };
        let record = Record {
            source: Arc::from("en"),
            document: Arc::from("en.txt@0"),
            span: Span { first: number, end: number + 1 },
            language: Arc::from("en"),
            round: 0,
            held_out: false,
            copies: vec![copy(0), copy(1)],
            text: None,
        };
        let sequence = SequenceNumber(number * RECORDS + place);
        group.entries.push(Entry { sequence, cursor: cursor.clone(), payload: Payload::Record(record) });
    }
    for teacher in 0..2 {
        let members = (0..RECORDS as u32).map(|entry| (entry, u32::from(teacher)));
        group.batches.extend(members.map(|member| BatchPlan { teacher, members: vec![member] }));
    }
    group
}

/// A stage with a quick teacher, and a slow one that is watched.
struct Stage {
    labelling: Labelling,
    groups: Sender<Group>,
    complete: Receiver<Vec<Entry>>,
    gate: Sender<()>,
    quick: TeacherWatch,
    watch: TeacherWatch,
    registry: Registry,
    control: StageControl,
    next: u64,
}

impl Stage {
    fn start(on_stall: OnStall) -> Self {
        Self::start_on(4, on_stall)
    }

    fn start_on(threads: usize, on_stall: OnStall) -> Self {
        let (gate, gated) = unbounded();
        let (groups, groups_out) = bounded(1);
        let (complete_in, complete) = bounded(1);
        let watch = TeacherWatch::new(StallOptions { after: Duration::from_millis(300), on_stall });
        let quick = TeacherWatch::default();
        let (registry, control) = (Registry::new(), StageControl::default());
        // The slow one blocks a thread of the pool for as long as it likes.
        let pool = model::RolePool::alone("label", threads).unwrap();
        let options = LabellingOptions {
            depth: DEPTH,
            control: control.clone(),
            recovery_interval: Duration::ZERO,
            pool,
            quarantine: std::env::temp_dir(),
        };
        let runners = vec![
            (Gated { index: 0, gate: None }, quick.clone()),
            (Gated { index: 1, gate: Some(gated) }, watch.clone()),
        ];
        let labelling = Labelling::start(runners, &options, groups_out, complete_in, &registry).unwrap();
        Self { labelling, groups, complete, gate, quick, watch, registry, control, next: 0 }
    }

    fn send(&mut self) {
        self.send_group(group(self.next));
    }

    fn send_group(&mut self, group: Group) {
        self.groups.send_timeout(group, DEADLINE).unwrap();
        self.next += 1;
    }

    /// For each record of group `number`, which has to come next: whether the slow teacher labelled it.
    fn receive(&self, number: u64) -> Vec<bool> {
        let entries = self.complete.recv_timeout(DEADLINE).unwrap();
        let labelled = entries.iter().zip(number * RECORDS..).map(|(entry, sequence)| {
            assert_eq!(entry.sequence.0, sequence);
            let Payload::Record(record) = &entry.payload else { panic!("no record") };
            let [quick, slow] = &record.copies[..] else { panic!("not two copies") };
            assert_eq!(quick.label, Some(label_of(quick)));
            assert!(slow.label.is_none() || slow.label == Some(label_of(slow)), "another copy's label");
            slow.label.is_some()
        });
        labelled.collect()
    }

    /// What a teacher's time went into.
    fn seconds(&self, teacher: &str, state: &str) -> f64 {
        let name = "mergedistill_teacher_seconds_total";
        let families = self.registry.gather().into_iter().filter(|family| family.name() == name);
        let has = |metric: &prometheus::proto::Metric| {
            [teacher, state].iter().all(|value| metric.get_label().iter().any(|label| label.value() == *value))
        };
        let metrics = families.flat_map(|family| family.get_metric().to_vec()).filter(has);
        metrics.map(|metric| metric.get_counter().get_value()).sum()
    }

    fn gauge(&self, name: &str) -> f64 {
        let family = self.registry.gather().into_iter().find(|family| family.name() == name).unwrap();
        let metrics = family.get_metric().iter();
        metrics.map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value()).sum()
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

fn is_stalled(stage: &Stage) -> bool {
    matches!(stage.watch.activity(), Activity::Stalled(_))
}

#[test]
fn a_teacher_s_time_is_counted_also_while_it_always_has_something_to_do() {
    let mut stage = Stage::start(OnStall::Wait);
    (0..2).for_each(|_| stage.send());
    wait_for("a stall", || is_stalled(&stage));
    (0..RECORDS).for_each(|_| stage.gate.send(()).unwrap());
    assert_eq!(stage.receive(0), [true, true]);
    // It is at its next batch by now.
    let seconds = stage.seconds("slow", "labelling");
    assert!(seconds >= 0.3, "{seconds}");
    assert!(stage.seconds("quick", "labelling") < 0.3);
    drop((stage.groups, stage.gate));
    stage.labelling.join().unwrap();
}

#[test]
fn a_teacher_with_nothing_to_do_says_what_it_waits_for() {
    let mut stage = Stage::start(OnStall::Wait);
    wait_for("input", || stage.seconds("quick", "waiting_for_input") > 0.0);
    (0..=DEPTH).for_each(|_| stage.send());
    wait_for("the slow one", || stage.seconds("quick", "waiting_for_teachers") > 0.0);
    // Nobody takes what is complete: the log is full.
    (0..6 * RECORDS).for_each(|_| stage.gate.send(()).unwrap());
    (0..2).for_each(|_| stage.send());
    wait_for("the log", || stage.seconds("quick", "waiting_for_log") > 0.0);
    (0..6).for_each(|number| assert_eq!(stage.receive(number), [true, true]));
    drop((stage.groups, stage.gate));
    stage.labelling.join().unwrap();
}

#[test]
fn groups_wait_for_a_teacher_that_stalls() {
    let mut stage = Stage::start(OnStall::Wait);
    stage.send();
    wait_for("a stall", || is_stalled(&stage) && stage.gauge("mergedistill_teacher_stalled") == 1.0);
    assert!(stage.complete.is_empty());
    stage.gate.send(()).unwrap();
    stage.gate.send(()).unwrap();
    assert_eq!(stage.receive(0), [true, true]);
    wait_for("its end", || stage.gauge("mergedistill_teacher_stalled") == 0.0);
    assert_eq!((stage.watch.activity(), stage.watch.dropped_copies()), (Activity::Idle, 0));
    drop((stage.groups, stage.gate));
    stage.labelling.join().unwrap();
}

#[test]
fn what_waits_for_a_teacher_that_stalls_can_be_dropped() {
    let mut stage = Stage::start(OnStall::DropCopy);
    // Many times more than fit inside.
    for number in 0..10 * DEPTH as u64 {
        stage.send();
        assert_eq!(stage.receive(number), [false, false]);
    }
    assert!(is_stalled(&stage));
    let dropped = 10 * DEPTH as u64 * RECORDS;
    assert_eq!(stage.watch.dropped_copies(), dropped);
    assert_eq!(stage.gauge("mergedistill_teacher_dropped_copies_total"), dropped as f64);
    assert_eq!(stage.gauge("mergedistill_teacher_stalled"), 1.0);

    // Its late answer is thrown away, and from then on it takes part again.
    drop(std::mem::replace(&mut stage.gate, unbounded().0));
    wait_for("its answer", || stage.watch.activity() == Activity::Idle);
    for number in 10 * DEPTH as u64..11 * DEPTH as u64 {
        stage.send();
        assert_eq!(stage.receive(number), [true, true]);
    }
    assert_eq!(stage.watch.dropped_copies(), dropped);
    wait_for("nothing is left", || stage.gauge("mergedistill_teacher_copies_in_flight") == 0.0);
    drop(stage.groups);
    assert!(stage.complete.recv().is_err());
    stage.labelling.join().unwrap();
}

#[test]
fn batches_that_were_answered_before_the_stall_keep_their_labels() {
    let mut stage = Stage::start(OnStall::DropCopy);
    stage.gate.send(()).unwrap();
    stage.send();
    assert_eq!(stage.receive(0), [true, false]);
    assert_eq!(stage.watch.dropped_copies(), 1);
    drop((stage.groups, stage.gate));
    stage.labelling.join().unwrap();
}

#[test]
fn nobody_waits_at_the_end_for_a_teacher_that_hangs() {
    for on_stall in [OnStall::Wait, OnStall::DropCopy] {
        let mut stage = Stage::start(on_stall);
        stage.send();
        wait_for("a stall", || is_stalled(&stage));
        if on_stall == OnStall::Wait {
            stage.control.stop(); // The quick one has nothing to do, so it hears nothing of that.
        }
        drop(stage.groups);
        assert_eq!(stage.complete.iter().count(), usize::from(on_stall == OnStall::DropCopy));
        stage.labelling.join().unwrap();
        drop(stage.gate);
    }
}

#[test]
fn what_nobody_else_labels_waits_for_a_teacher_that_stalls() {
    let mut stage = Stage::start(OnStall::DropCopy);
    // Of the first record the quick one has no copy.
    let mut alone = group(0);
    alone.batches.retain(|plan| plan.teacher == 1 || plan.members != [(0, 0)]);
    stage.send_group(alone);
    stage.send();
    wait_for("a stall", || is_stalled(&stage) && stage.watch.dropped_copies() == RECORDS);
    assert!(stage.complete.is_empty());
    // It is given nothing of the second group, and all of the first.
    drop(std::mem::replace(&mut stage.gate, unbounded().0));
    let entries = stage.complete.recv_timeout(DEADLINE).unwrap();
    let labels = |entry: &Entry| match &entry.payload {
        Payload::Record(record) => record.copies.iter().map(|copy| copy.label.is_some()).collect::<Vec<_>>(),
        _ => panic!("no record"),
    };
    assert_eq!(entries.iter().map(labels).collect::<Vec<_>>(), [[false, true], [true, true]]);
    assert_eq!(stage.receive(1), [false, false]);
    assert_eq!(stage.watch.dropped_copies(), RECORDS);
    drop(stage.groups);
    stage.labelling.join().unwrap();
}

#[test]
fn who_waits_for_a_thread_does_not_stall() {
    for ends in [true, false] {
        let mut stage = Stage::start_on(1, OnStall::Wait);
        stage.send();
        stage.send();
        wait_for("a stall", || is_stalled(&stage));
        assert_eq!(stage.quick.activity(), Activity::Idle);
        if ends {
            drop((stage.groups, stage.gate));
            assert_eq!(stage.complete.iter().count(), 2);
            stage.labelling.join().unwrap();
        } else {
            stage.control.stop();
            drop(stage.groups);
            assert_eq!(stage.complete.iter().count(), 0);
            stage.labelling.join().unwrap();
        }
    }
}

#[test]
fn a_stop_does_not_wait_for_the_only_teacher_that_has_something_to_do() {
    let mut stage = Stage::start(OnStall::Wait);
    // One more than fit inside.
    for number in 0..=DEPTH as u64 {
        let mut own = group(number);
        own.batches.retain(|plan| plan.teacher == 1);
        stage.send_group(own);
    }
    wait_for("a stall", || is_stalled(&stage));
    stage.control.stop();
    drop(stage.groups);
    assert_eq!(stage.complete.iter().count(), 0);
    stage.labelling.join().unwrap();
}
