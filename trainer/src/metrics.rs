//! What training shows to Prometheus.

use crate::evaluate::EvaluationReport;
use crate::evaluation_gauges::EvaluationGauges;
use crate::event::StepReport;
use prometheus::{Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};
use std::fs;
use std::path::Path;
use std::time::Instant;
use store::stage::{StageMetrics, unix_seconds};

/// From a student in a test to a large one with a large batch.
const WORK_SECONDS: [f64; 13] = [0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0];
/// Evaluations take many batches.
const EVALUATION_SECONDS: [f64; 10] = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1800.0];

/// The metrics of this stage.
pub(crate) struct Metrics {
    pub(crate) stage: StageMetrics,
    pub(crate) step: IntGauge,
    pub(crate) skipped_steps: IntCounter,
    steps: IntCounter,
    pub(crate) halved_batches: IntCounter,
    pub(crate) device_bytes: IntGauge,
    loss: Gauge,
    tokens: IntCounter,
    masked_positions: IntCounter,
    flops: Counter,
    learning_rate: Gauge,
    lambda: Gauge,
    gradient_norm: Gauge,
    step_seconds: Histogram,
    window_seconds: Histogram,
    checkpoint_seconds: Histogram,
    checkpoint_bytes: IntCounter,
    evaluation_seconds: Histogram,
    evaluation: EvaluationGauges,
    evaluation_time: Gauge,
    checkpoint_time: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let metrics = Self {
            stage: StageMetrics::register(registry, "trainer")?,
            step: IntGauge::new("mergedistill_train_step", "Steps that the student's weights are the result of.")?,
            skipped_steps: IntCounter::new(
                "mergedistill_train_skipped_steps_total",
                "Steps skipped because loss or gradient was not finite.",
            )?,
            steps: IntCounter::new("mergedistill_train_steps_total", "Steps computed by this process.")?,
            halved_batches: IntCounter::new(
                "mergedistill_train_halved_batches_total",
                "Times that a micro-batch was computed in two halves, because a GPU had no room for all of it.",
            )?,
            device_bytes: IntGauge::new(
                "mergedistill_train_device_bytes",
                "Memory that the student has on its GPUs; 0: it is trained on the processor.",
            )?,
            loss: Gauge::new("mergedistill_train_loss", "Loss of the last step, in nats.")?,
            tokens: IntCounter::new("mergedistill_train_tokens_total", "Tokens trained on by this process.")?,
            masked_positions: IntCounter::new(
                "mergedistill_train_masked_positions_total",
                "Masked positions trained on by this process.",
            )?,
            flops: Counter::new(
                "mergedistill_train_flops_total",
                "Floating-point operations of training by this process: by the student's shape, forward and backward.",
            )?,
            learning_rate: Gauge::new("mergedistill_train_learning_rate", "Learning rate of the last step.")?,
            lambda: Gauge::new(
                "mergedistill_train_lambda_ratio",
                "Weight of distillation against gold labels at the last step.",
            )?,
            gradient_norm: Gauge::new("mergedistill_train_grad_norm", "Norm of the last gradient, before clipping.")?,
            step_seconds: histogram("mergedistill_train_step_seconds", "Time a step takes.", &WORK_SECONDS)?,
            window_seconds: histogram(
                "mergedistill_train_window_seconds",
                "Time to form a training window and to read its first batch from the log.",
                &WORK_SECONDS,
            )?,
            checkpoint_seconds: histogram(
                "mergedistill_checkpoint_seconds",
                "Time to write a checkpoint and to make it durable.",
                &WORK_SECONDS,
            )?,
            checkpoint_bytes: IntCounter::new(
                "mergedistill_checkpoint_written_bytes_total",
                "Bytes of the checkpoints that this process wrote.",
            )?,
            evaluation_seconds: histogram(
                "mergedistill_evaluation_seconds",
                "Time of an evaluation of the student.",
                &EVALUATION_SECONDS,
            )?,
            evaluation: EvaluationGauges::register(registry)?,
            evaluation_time: Gauge::new(
                "mergedistill_evaluation_timestamp_seconds",
                "Unix time of this process's last evaluation; 0: none yet.",
            )?,
            checkpoint_time: Gauge::new(
                "mergedistill_checkpoint_timestamp_seconds",
                "Unix time of this process's last checkpoint; 0: none yet.",
            )?,
        };
        metrics.enter(registry)?;
        Ok(metrics)
    }

    fn enter(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.step.clone()))?;
        registry.register(Box::new(self.skipped_steps.clone()))?;
        registry.register(Box::new(self.steps.clone()))?;
        registry.register(Box::new(self.halved_batches.clone()))?;
        registry.register(Box::new(self.device_bytes.clone()))?;
        registry.register(Box::new(self.loss.clone()))?;
        registry.register(Box::new(self.tokens.clone()))?;
        registry.register(Box::new(self.masked_positions.clone()))?;
        registry.register(Box::new(self.flops.clone()))?;
        registry.register(Box::new(self.learning_rate.clone()))?;
        registry.register(Box::new(self.lambda.clone()))?;
        registry.register(Box::new(self.gradient_norm.clone()))?;
        registry.register(Box::new(self.step_seconds.clone()))?;
        registry.register(Box::new(self.window_seconds.clone()))?;
        registry.register(Box::new(self.checkpoint_seconds.clone()))?;
        registry.register(Box::new(self.checkpoint_bytes.clone()))?;
        registry.register(Box::new(self.evaluation_seconds.clone()))?;
        registry.register(Box::new(self.evaluation_time.clone()))?;
        registry.register(Box::new(self.checkpoint_time.clone()))
    }

    pub(crate) fn observe_step(&self, report: &StepReport) {
        self.step.set(i64::try_from(report.step).unwrap_or(i64::MAX));
        self.steps.inc();
        self.skipped_steps.inc_by(u64::from(report.skipped));
        self.loss.set(report.loss);
        self.tokens.inc_by(report.tokens);
        self.masked_positions.inc_by(report.masked_positions);
        self.flops.inc_by(report.cost.train_flops as f64);
        self.learning_rate.set(report.learning_rate);
        self.lambda.set(report.lambda);
        self.gradient_norm.set(report.grad_norm);
        self.step_seconds.observe(report.seconds);
        self.stage.items_in.inc_by(report.copies);
        self.stage.items_out.inc_by(report.copies);
        self.stage.progressed();
    }

    /// A window was formed and its first batch read, since `started`.
    pub(crate) fn has_formed_window(&self, started: Instant) {
        self.window_seconds.observe(started.elapsed().as_secs_f64());
        self.stage.progressed();
    }

    /// The student was just evaluated, since `started`.
    pub(crate) fn has_evaluated(&self, evaluation: &EvaluationReport, started: Instant) {
        self.observe_evaluation(evaluation);
        self.evaluation_seconds.observe(started.elapsed().as_secs_f64());
        self.evaluation_time.set(unix_seconds());
        self.stage.progressed();
    }

    /// The checkpoint in `folder` was just written, since `started`.
    pub(crate) fn has_checkpoint(&self, folder: &Path, started: Instant) {
        self.checkpoint_time.set(unix_seconds());
        self.checkpoint_seconds.observe(started.elapsed().as_secs_f64());
        self.checkpoint_bytes.inc_by(folder_bytes(folder));
    }

    pub(crate) fn observe_evaluation(&self, evaluation: &EvaluationReport) {
        self.evaluation.observe(evaluation);
    }
}

/// Bytes of the files in a folder; what cannot be looked at does not count.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
