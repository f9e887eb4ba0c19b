//! Entries as JSON, in the shape that `log dump` promises.

use crate::{Entry, Identity, Label, MaskedCopy, Payload, Record};
use serde_json::{Number, Value, json};

/// A record as one JSON object; teachers by name. An entry that is no record gives `seq`, `source` and its event.
#[must_use]
pub fn record_json(identity: &Identity, entry: &Entry) -> Value {
    let sequence = entry.sequence.0;
    let source = &entry.cursor.source;
    match &entry.payload {
        Payload::Record(record) => full(identity, sequence, record),
        Payload::Skip(skip) => {
            json!({ "seq": sequence, "source": source, "document": skip.document, "skip": skip.reason })
        }
        Payload::End => json!({ "seq": sequence, "source": source, "end": true }),
    }
}

/// `text` is there only if the record has one.
fn full(identity: &Identity, sequence: u64, record: &Record) -> Value {
    let mut value = json!({
        "seq": sequence,
        "source": record.source,
        "document": record.document,
        "span": [record.span.first, record.span.end],
        "language": record.language,
        "round": record.round,
        "held_out": record.held_out,
        "copies": record.copies.iter().map(|copy| copy_json(identity, copy)).collect::<Vec<_>>(),
    });
    if let (Some(text), Some(fields)) = (&record.text, value.as_object_mut()) {
        fields.insert("text".to_owned(), json!(text));
    }
    value
}

/// The fields of a label are `null` for a copy without one.
fn copy_json(identity: &Identity, copy: &MaskedCopy) -> Value {
    let teacher = identity.teachers.get(usize::from(copy.teacher));
    let label = copy.label.as_ref();
    json!({
        "teacher": teacher.map_or_else(|| format!("#{}", copy.teacher), |teacher| teacher.name.clone()),
        "token_ids": copy.token_ids,
        "masked_positions": copy.masked_positions,
        "gold_ids": copy.gold_ids,
        "top_ids": label.map(|label| rows(label, &label.top_ids, |id| json!(id))),
        "top_logits": label.map(|label| rows(label, &label.top_logits, |logit| float(*logit))),
        "log_sum_exp": label.map(|label| floats(&label.log_sum_exp)),
        "gold_logits": label.map(|label| floats(&label.gold_logits)),
        "computed_in": label.map(|label| label.computed_in),
    })
}

fn rows<T>(label: &Label, values: &[T], show: impl Fn(&T) -> Value) -> Value {
    let row = |position: usize| values.iter().skip(position * label.top_k).take(label.top_k).map(&show).collect();
    (0..label.positions()).map(row).collect::<Vec<Value>>().into()
}

fn floats(values: &[f32]) -> Value {
    values.iter().map(|value| float(*value)).collect()
}

/// The shortest number that reads back as the same float32; JSON has none for infinities and NaN, which become `null`.
fn float(value: f32) -> Value {
    let shortest: Option<f64> = value.to_string().parse().ok();
    let exact = shortest.filter(|shortest| (*shortest as f32).to_bits() == value.to_bits());
    Number::from_f64(exact.unwrap_or_else(|| value.into())).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_float_reads_back(bits: u32) {
            let value = f32::from_bits(bits);
            let printed = float(value).to_string();
            if value.is_finite() {
                let back: f64 = serde_json::from_str(&printed).unwrap();
                prop_assert_eq!((back as f32).to_bits(), bits);
            } else {
                prop_assert_eq!(printed, "null");
            }
        }
    }

    #[test]
    fn floats_are_short() {
        assert_eq!(float(0.1).to_string(), "0.1");
    }
}
