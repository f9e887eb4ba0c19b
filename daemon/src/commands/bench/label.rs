//! `mergedistill bench label`: what one teacher's runner labels per second.

use super::labelling::Examples;
use super::{count, in_pool, median, memory, peak_rss_mib, timed};
use crate::cli::BenchLabelArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
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
    /// Of a pass: see [`teacher::Runner::flops`].
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
    let examples = Examples::read(&args.work, &args.common, &args.place)?;
    // Before the work, so that a path that cannot be written costs no time.
    let dump = args.dump.as_deref().map(|path| create(path).map(|file| (path, file))).transpose()?;
    let labelling = examples.load_teacher()?;

    let labels = labelling.label_all()?;
    if let Some((path, file)) = dump {
        let copies = labelling.batches().iter().flatten().zip(labels.iter().flatten());
        write_dump(file, copies, args.common.top_k).map_err(|error| Failure::io("write", path, &error))?;
    }
    drop(labels);
    let mut seconds = Vec::new();
    for _ in 0..args.repeat {
        seconds.push(timed(|| labelling.label_all())?.0);
    }

    let seconds = median(&seconds);
    let copies = || labelling.batches().iter().flatten();
    let tokens: usize = copies().map(|copy| copy.token_ids.len()).sum();
    let flops = labelling.flops(copies());
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
