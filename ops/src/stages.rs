//! The stages' counters, from the registry into a status.

use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::{Map, Value, json};

/// Metric of a stage, and its name in a status. `store::stage::StageMetrics` registers them.
const FIELDS: [(&str, &str); 4] = [
    ("mergedistill_stage_items_in_total", "items_in"),
    ("mergedistill_stage_items_out_total", "items_out"),
    ("mergedistill_stage_items_in_flight", "in_flight"),
    ("mergedistill_stage_last_progress_timestamp_seconds", "last_progress_timestamp_seconds"),
];

/// Adds `stages.<stage>.<field>` to a status; what the status says itself has precedence.
pub(crate) fn add(status: &mut Value, registry: &Registry) {
    let Value::Object(status) = status else { return };
    let families = registry.gather();
    for (metric_name, field) in FIELDS {
        for family in families.iter().filter(|family| family.name() == metric_name) {
            for metric in family.get_metric() {
                add_field(status, metric, field, value(family, metric));
            }
        }
    }
}

fn add_field(status: &mut Map<String, Value>, metric: &Metric, field: &str, value: Value) {
    let Some(stage) = metric.get_label().iter().find(|label| label.name() == "stage") else { return };
    let stages = status.entry("stages").or_insert_with(|| json!({}));
    let Value::Object(stages) = stages else { return };
    if let Value::Object(stage) = stages.entry(stage.value()).or_insert_with(|| json!({})) {
        stage.entry(field).or_insert(value);
    }
}

/// Counts as whole numbers; a time that never came as null.
fn value(family: &MetricFamily, metric: &Metric) -> Value {
    let value = match family.get_field_type() {
        prometheus::proto::MetricType::COUNTER => metric.get_counter().get_value(),
        _ => metric.get_gauge().get_value(),
    };
    if family.name().ends_with("_timestamp_seconds") {
        return if value > 0.0 { json!(value) } else { Value::Null };
    }
    json!(value as i64)
}
