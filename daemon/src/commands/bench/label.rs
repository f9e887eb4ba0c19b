//! `mergedistill bench label`: what one teacher's runner labels per second.

use super::labelling::{Examples, Labelling};
use super::{count, in_pool, median, memory, peak_rss_mib, timed};
use crate::cli::BenchLabelArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use model::Configuration;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use store::{Label, MaskedCopy};

/// What is measured.
#[derive(Debug, Serialize)]
struct LabelFigures {
    threads: usize,
    top_k: usize,
    batch_tokens: usize,
    /// Sequences.
    examples: usize,
    batches: usize,
    /// Of all sequences, `[CLS]` and `[SEP]` included.
    tokens: usize,
    masked_positions: usize,
    /// Passes that were measured.
    repeat: usize,
    /// Median of a pass.
    seconds: f64,
    tokens_per_second: f64,
    /// Of a pass: see [`flops`].
    flops: u64,
    flops_per_second: f64,
    peak_rss_mib: Option<u64>,
}

/// One copy with its labels, as `--dump` writes it; names as in `log dump`.
#[derive(Serialize)]
struct DumpLine<'a> {
    token_ids: &'a [u32],
    masked_positions: &'a [u32],
    gold_ids: &'a [u32],
    top_ids: Vec<&'a [u32]>,
    top_logits: Vec<&'a [f32]>,
    log_sum_exp: &'a [f32],
}

/// Labels a text with a teacher, as often as asked, and prints the figures.
pub(super) fn label(args: &BenchLabelArgs) -> Result<(), Failure> {
    let figures = in_pool(args.threads, || measure(args))?;
    if args.common.json {
        return print_json(&figures);
    }
    let LabelFigures { tokens, masked_positions, .. } = figures;
    let sequences = count(figures.examples, "sequence");
    print_line(&format!(
        "{tokens} tokens, {masked_positions} of them masked; {sequences}, in batches of up to {} tokens",
        args.work.batch_tokens
    ))?;
    print_line(&format!(
        "{:.0} tokens/s with {}: {:.4} s a pass, the median of {}",
        figures.tokens_per_second,
        count(args.threads, "thread"),
        figures.seconds,
        args.repeat
    ))?;
    print_line(&format!(
        "{:.2} GFLOP a pass, {:.1} GFLOP/s; peak memory {}",
        figures.flops as f64 / 1e9,
        figures.flops_per_second / 1e9,
        memory(figures.peak_rss_mib)
    ))
}

fn measure(args: &BenchLabelArgs) -> Result<LabelFigures, Failure> {
    let examples = Examples::read(&args.work, &args.common)?;
    // Before the work, so that a path that cannot be written costs no time.
    let dump = args.dump.as_deref().map(|path| create(path).map(|file| (path, file))).transpose()?;
    let labelling = examples.load_teacher()?;

    let labels = label_all(&labelling)?;
    if let Some((path, file)) = dump {
        let copies = labelling.batches().iter().flatten().zip(labels.iter().flatten());
        write_dump(file, copies, args.common.top_k).map_err(|error| Failure::io("write", path, &error))?;
    }
    drop(labels);
    let mut seconds = Vec::new();
    for _ in 0..args.repeat {
        seconds.push(timed(|| label_all(&labelling))?.0);
    }

    let seconds = median(&seconds);
    let copies = || labelling.batches().iter().flatten();
    let tokens: usize = copies().map(|copy| copy.token_ids.len()).sum();
    let flops = flops(labelling.configuration(), copies());
    Ok(LabelFigures {
        threads: args.threads,
        top_k: args.common.top_k,
        batch_tokens: args.work.batch_tokens,
        examples: copies().count(),
        batches: labelling.batches().len(),
        tokens,
        masked_positions: copies().map(|copy| copy.masked_positions.len()).sum(),
        repeat: args.repeat,
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        flops,
        flops_per_second: flops as f64 / seconds,
        peak_rss_mib: peak_rss_mib(),
    })
}

fn create(path: &Path) -> Result<File, Failure> {
    let failed = |error| Failure::new(ExitCode::CannotCreate, format!("cannot create {}: {error}", path.display()));
    File::create(path).map_err(failed)
}

/// One pass: `[batches][copies]`.
fn label_all(labelling: &Labelling) -> Result<Vec<Vec<Label>>, Failure> {
    (0..labelling.batches().len()).map(|batch| labelling.label(batch)).collect()
}

fn write_dump<'a>(
    file: File,
    copies: impl Iterator<Item = (&'a MaskedCopy, &'a Label)>,
    top_k: usize,
) -> std::io::Result<()> {
    let mut out = BufWriter::new(file);
    for (copy, label) in copies {
        let line = DumpLine {
            token_ids: &copy.token_ids,
            masked_positions: &copy.masked_positions,
            gold_ids: &copy.gold_ids,
            top_ids: label.top_ids.chunks(top_k).collect(),
            top_logits: label.top_logits.chunks(top_k).collect(),
            log_sum_exp: &label.log_sum_exp,
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Floating-point operations that matrix products and attention need to label `copies`, a multiplication and an addition
/// counted as two; element-wise work is left out. With T tokens and M masked positions in all, s and m those of one
/// sequence, H hidden, I intermediate and E embedding size, V rows of the decoder, L layers:
///
/// - factorised embedding: 2·T·E·H;
/// - each layer but the last: 2·T·(4·H² + 2·H·I), attention 4·Σ s²·H;
/// - the last layer, of which only masked rows are wanted: keys and values 2·T·2·H², the rest 2·M·(2·H² + 2·H·I),
///   attention 4·Σ m·s·H;
/// - head: 2·M·H·E, decoder 2·M·E·V.
fn flops<'a>(configuration: &Configuration, copies: impl Iterator<Item = &'a MaskedCopy>) -> u64 {
    let [h, i, e, v, layers] = [
        configuration.hidden_size,
        configuration.intermediate_size,
        configuration.embedding_size,
        configuration.vocabulary_size,
        configuration.layers,
    ]
    .map(|size| size as u64);
    let [mut t, mut m, mut pairs, mut masked_pairs] = [0_u64; 4];
    for copy in copies {
        let [length, masked] = [copy.token_ids.len(), copy.masked_positions.len()].map(|size| size as u64);
        t += length;
        m += masked;
        pairs += length * length;
        masked_pairs += masked * length;
    }
    let factorised = if e == h { 0 } else { 2 * t * e * h };
    let full_layer = 2 * t * (4 * h * h + 2 * h * i) + 4 * pairs * h;
    let last_layer = 2 * t * 2 * h * h + 2 * m * (2 * h * h + 2 * h * i) + 4 * masked_pairs * h;
    factorised + (layers - 1) * full_layer + last_layer + 2 * m * h * e + 2 * m * e * v
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same count, product by product.
    #[test]
    fn flops_are_those_of_the_products() {
        let shape = trainer::StudentOptions {
            layers: 3,
            hidden_size: 8,
            heads: 2,
            intermediate_size: 12,
            embedding_size: 4,
            max_sequence_length: 16,
            dropout: 0.0,
        };
        let configuration = shape.configuration(50, 0);
        let copy = |length: usize, masked: u32| MaskedCopy {
            teacher: 0,
            token_ids: vec![0; length],
            masked_positions: (1..=masked).collect(),
            gold_ids: vec![0; masked as usize],
            label: None,
        };
        let product = |rows: u64, inner: u64, columns: u64| 2 * rows * inner * columns;
        let mut expected = 0;
        for (tokens, masked) in [(5, 1), (9, 3)] {
            expected += product(tokens, 4, 8);
            for layer in 0..3 {
                let rows = if layer == 2 { masked } else { tokens };
                expected += 2 * product(tokens, 8, 8); // keys, values
                expected += 2 * product(rows, 8, 8); // queries, output
                for _head in 0..2 {
                    expected += product(rows, 4, tokens) + product(rows, tokens, 4);
                }
                expected += product(rows, 8, 12) + product(rows, 12, 8);
            }
            expected += product(masked, 8, 4) + product(masked, 4, 50);
        }
        assert_eq!(flops(&configuration, [copy(5, 1), copy(9, 3)].iter()), expected);
    }
}
