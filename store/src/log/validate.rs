//! What must hold of entries before they get into a log: the encoding relies on it, and so does every reader.

use crate::log::error::StoreError;
use crate::log::options::Extras;
use crate::{ComputedIn, Entry, MaskedCopy, Payload, SequenceNumber, Span};

/// Longest string in an entry, in bytes.
const MAX_STRING_BYTES: usize = u16::MAX as usize;

/// Checks a block that is to be appended at `next`.
pub(crate) fn validate(
    block: &[Entry],
    next: SequenceNumber,
    teachers: usize,
    extras: Extras,
) -> Result<(), StoreError> {
    for (expected, entry) in (next.0..).zip(block) {
        let invalid = |what: String| StoreError::InvalidEntry { sequence: entry.sequence, what };
        if entry.sequence.0 != expected {
            return Err(invalid(format!("the next entry of the log is {expected}")));
        }
        entry_fault(entry, teachers, extras).map_or(Ok(()), |what| Err(invalid(what)))?;
    }
    Ok(())
}

/// What is wrong with an entry.
fn entry_fault(entry: &Entry, teachers: usize, extras: Extras) -> Option<String> {
    let cursor = &entry.cursor;
    let mut strings = vec![&cursor.source, &cursor.language, &cursor.file];
    let mut copies: &[MaskedCopy] = &[];
    match &entry.payload {
        Payload::Record(record) => {
            strings.extend([&record.source, &record.document, &record.language]);
            copies = &record.copies;
            if record.span.first > record.span.end {
                return Some(format!("its span is {}..{}", record.span.first, record.span.end));
            }
            if let Some(text) = &record.text
                && let Some(fault) = text_fault(text, record.span, extras.text)
            {
                return Some(fault);
            }
        }
        Payload::Skip(skip) => strings.extend([&skip.document, &skip.reason]),
        Payload::End => {}
    }
    if let Some(long) = strings.iter().find(|string| string.len() > MAX_STRING_BYTES) {
        return Some(format!("a name of {} bytes; at most {MAX_STRING_BYTES} are possible", long.len()));
    }
    copies.iter().find_map(|copy| copy_fault(copy, teachers, extras.computed_in))
}

/// A text is as long as its span, which says where it ends.
fn text_fault(text: &str, span: Span, keep_text: bool) -> Option<String> {
    let (length, expected) = (text.len() as u64, span.end - span.first);
    match keep_text {
        false => Some("it has a text, and the log is written without texts".to_owned()),
        true => (length != expected).then(|| format!("a text of {length} bytes for a span of {expected}")),
    }
}

fn copy_fault(copy: &MaskedCopy, teachers: usize, computed_in: bool) -> Option<String> {
    let masked = copy.masked_positions.len();
    let fault = |what: String| Some(format!("the copy of teacher {}: {what}", copy.teacher));
    if usize::from(copy.teacher) >= teachers {
        return fault(format!("the log knows {teachers} teachers"));
    }
    if copy.gold_ids.len() != masked {
        return fault(format!("{} gold ids at {masked} masked positions", copy.gold_ids.len()));
    }
    if !copy.masked_positions.is_sorted_by(|left, right| left < right) {
        return fault("masked positions do not ascend".to_owned());
    }
    if copy.masked_positions.last().is_some_and(|last| *last as usize >= copy.token_ids.len()) {
        return fault(format!("a masked position beyond its {} tokens", copy.token_ids.len()));
    }
    let label = copy.label.as_ref()?;
    if !computed_in && label.computed_in != ComputedIn::Float32 {
        return fault(format!("labels in {}, and the log is written for float32 alone", label.computed_in.name()));
    }
    let lengths = [label.top_ids.len(), label.top_logits.len(), label.log_sum_exp.len(), label.gold_logits.len()];
    let values = masked * label.top_k;
    if lengths != [values, values, masked, masked] {
        return fault(format!("a label of lengths {lengths:?} for {masked} positions and top-{}", label.top_k));
    }
    None
}
