//! What evaluations show to Prometheus.

use crate::evaluate::EvaluationReport;
use prometheus::{GaugeVec, Opts, Registry};

/// The last evaluation, by language and teacher.
pub(crate) struct EvaluationGauges {
    loss: GaugeVec,
    top1: GaugeVec,
    rdt: GaugeVec,
    ece: GaugeVec,
    agreement: GaugeVec,
    retained_mass: GaugeVec,
}

impl EvaluationGauges {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let labels = ["language", "teacher", "model"];
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        Ok(Self {
            loss: gauges(
                "mergedistill_evaluation_loss_nats",
                "Held-out loss at a teacher's positions, of the teacher or the student.",
                &labels,
            )?,
            top1: gauges(
                "mergedistill_evaluation_top1_ratio",
                "Held-out top-1 accuracy at a teacher's positions, of the teacher or the student.",
                &labels,
            )?,
            rdt: gauges(
                "mergedistill_evaluation_rdt_percent",
                "Relative difference of the student's top-1 accuracy to a teacher's; above 0: the student is ahead.",
                &labels[..2],
            )?,
            ece: gauges(
                "mergedistill_evaluation_calibration_error_ratio",
                "Held-out expected calibration error at a teacher's positions, of the teacher or the student.",
                &labels,
            )?,
            agreement: gauges(
                "mergedistill_evaluation_agreement_ratio",
                "Share of a teacher's held-out positions at which teacher and student have the same best guess.",
                &labels[..2],
            )?,
            retained_mass: gauges(
                "mergedistill_evaluation_retained_mass_ratio",
                "Share of a teacher's probability that its labels hold at held-out positions.",
                &labels[..2],
            )?,
        })
    }

    pub(crate) fn observe(&self, evaluation: &EvaluationReport) {
        let pairs = evaluation.languages.iter().flat_map(|(language, result)| {
            result.teachers.iter().map(move |(teacher, pair)| (language.as_str(), teacher.as_str(), pair))
        });
        for (language, teacher, pair) in pairs {
            let models = [
                ("teacher", pair.loss, pair.top1, pair.ece),
                ("student", pair.student_loss, pair.student_top1, pair.student_ece),
            ];
            for (model, loss, top1, ece) in models {
                let labels = [language, teacher, model];
                set(&self.loss, &labels, Some(loss));
                set(&self.top1, &labels, Some(top1));
                set(&self.ece, &labels, ece);
            }
            let labels = [language, teacher];
            set(&self.rdt, &labels, pair.rdt);
            set(&self.agreement, &labels, pair.agreement);
            set(&self.retained_mass, &labels, pair.retained_mass);
        }
    }
}

/// Sets a gauge to what is known.
fn set(gauges: &GaugeVec, labels: &[&str], value: Option<f64>) {
    if let Some(value) = value {
        gauges.with_label_values(labels).set(value);
    }
}
