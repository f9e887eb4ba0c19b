//! A worker that answers at once: with it, what a coordinator and its server can do is measured, and not what a teacher can.
//!
//!     cargo build --release -p teacher --example instant_worker
//!     target/release/examples/instant_worker URL RUN TEACHER
//!
//! Its labels have the right form, and say nothing: ids and logits are drawn.

use model::RolePool;
use model::random::Philox;
use prometheus::Registry;
use std::error::Error;
use std::sync::Arc;
use store::stage::StageControl;
use store::{Label, MaskedCopy, SequenceNumber};
use teacher::remote::{LinkOptions, Worker, WorkerMetrics, WorkerOptions};
use teacher::{Labeller, PendingLabels, TeacherError};

/// Says anything.
struct Instant {
    name: String,
    index: u16,
    top_k: usize,
    /// Labels of one masked position after another, made before.
    positions: Vec<Label>,
}

/// Positions whose labels are made before, and used in turns.
const MADE: u64 = 4096;
/// Tokens of the teacher.
const VOCABULARY: u64 = 30_000;

impl Instant {
    fn new(name: &str, index: u16, top_k: usize) -> Self {
        let stream = Philox::new(0, "instant", &[]);
        let label = |position: u64| {
            let id = |rank: u64| stream.below(VOCABULARY, position, rank) as u32;
            let logit = |rank: u64| 12.0 - rank as f32 - (id(rank) % 1000) as f32 / 1100.0;
            let ranks = 0..top_k as u64;
            Label {
                top_k,
                top_ids: ranks.clone().map(id).collect(),
                top_logits: ranks.map(logit).collect(),
                log_sum_exp: vec![12.5 + (id(99) % 1000) as f32 / 500.0],
                gold_logits: vec![(id(98) % 1000) as f32 / 100.0],
                ..Label::default()
            }
        };
        Self { name: name.to_owned(), index, top_k, positions: (0..MADE).map(label).collect() }
    }

    fn label(&self, copy: &MaskedCopy) -> Label {
        let mut label = Label { top_k: self.top_k, ..Label::default() };
        for (at, gold) in copy.masked_positions.iter().zip(&copy.gold_ids) {
            let one = &self.positions[((u64::from(*at) * 31 + u64::from(*gold)) % MADE) as usize];
            label.top_ids.extend(&one.top_ids);
            label.top_logits.extend(&one.top_logits);
            label.log_sum_exp.extend(&one.log_sum_exp);
            label.gold_logits.extend(&one.gold_logits);
        }
        label
    }
}

impl Labeller for Instant {
    fn name(&self) -> &str {
        &self.name
    }

    fn index(&self) -> u16 {
        self.index
    }

    fn begin(&self, copies: &[&MaskedCopy], _: SequenceNumber) -> Result<PendingLabels, TeacherError> {
        Ok(PendingLabels::ready(copies.iter().map(|copy| self.label(copy)).collect()))
    }

    fn flops(&self, _: &[&MaskedCopy]) -> u64 {
        0
    }

    fn needs_pool(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, run, teacher] = &arguments[..] else { return Err("usage: instant_worker URL RUN TEACHER".into()) };
    let link = LinkOptions {
        url: url.clone(),
        run: run.clone(),
        login: None,
        credentials: None,
        tls_ca: None,
        tls_identity: None,
        stream_bytes: 0,
        replicas: 1,
    };
    let name = format!("instant/{}", std::process::id());
    let options = WorkerOptions { link, teacher: teacher.clone(), name, device: "none".to_owned() };
    let (control, metrics) = (StageControl::default(), WorkerMetrics::register(&Registry::new(), teacher)?);
    let Some(worker) = Worker::join(options, &control, &metrics)? else { return Ok(()) };
    let spec = worker.spec();
    let labeller = Instant::new(&spec.name, spec.index, spec.top_k);
    worker.run(Arc::new(labeller), RolePool::alone("label", 1)?, &control)?;
    Ok(())
}
