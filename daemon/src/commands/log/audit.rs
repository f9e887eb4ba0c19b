//! `mergedistill log audit`: stored labels beside what the teacher says when it is asked again.
//!
//! The teacher labels the drawn copies as it would in a run, but in batches of other shapes than those in which they were
//! labelled at first, and so with other rounding: [`FLOAT_TOLERANCE`] allows for that, whatever the log's precision. Of labels with a
//! sampled tail the exact head is compared: by other rounding other tokens may be drawn.

mod comparison;
mod draw;

use super::super::{print_json, print_line};
use super::{model_failure, open_tokenizer};
use crate::cli::LogAuditArgs;
use crate::failure::{ExitCode, Failure};
use comparison::{Recomputed, Tally};
use draw::{Drawn, Wanted, draw};
use model::{RolePool, Tokenizer};
use serde::Serialize;
use std::collections::BTreeMap;
use store::{ComputedIn, Identity, Label, LogReader, MaskedCopy, Precision, TeacherEntry};
use teacher::{Runner, RunnerOptions, computed_in};

/// Float32 labels of one copy differ by less than this from batch to batch, in nats.
const FLOAT_TOLERANCE: f64 = 1e-3;

/// What float32 rounding may add to the mean KL divergence, in nats per position.
const FLOAT_DIVERGENCE: f64 = 1e-5;

/// The same where labels were made in bfloat16, the first time or again: it has eight bits of a number, and logits are sums of some hundreds.
const BF16_TOLERANCE: f64 = 0.1;
const BF16_DIVERGENCE: f64 = 1e-3;

/// In float16, which has eleven: an eighth of that, and of a divergence, which goes with the square, less yet.
const F16_TOLERANCE: f64 = 0.0125;
const F16_DIVERGENCE: f64 = 5e-5;

/// What `precision = "compact"` guarantees: of every log-probability and log-sum-exp, and of the mean KL divergence.
const COMPACT_TOLERANCE: f64 = 1.0 / 32.0;
const COMPACT_DIVERGENCE: f64 = 2e-4;

/// A guarantee of a mean is one of all positions: so many standard errors of a sample's mean are chance.
const STANDARD_ERRORS: f64 = 4.0;

/// Tokens per forward pass.
const BATCH_TOKENS: usize = 8192;

/// Digits of a fingerprint that tell one from another.
const FINGERPRINT_DIGITS: usize = 12;

/// What the audit found.
#[derive(Debug, Serialize)]
struct Report {
    /// The teacher's name in the log.
    teacher: String,
    precision: Precision,
    /// Drawn.
    records: usize,
    /// What their labels were computed in.
    computed_in: BTreeMap<&'static str, usize>,
    /// Masked positions of the drawn copies.
    positions: u64,
    /// Stored top-k entries at these positions.
    entries: u64,
    /// Positions at which other tokens are among the top k now.
    id_sets_differ: u64,
    /// Positions with the same tokens in another order.
    orders_differ: u64,
    /// How far a stored entry lies below the k-th largest logit of now.
    shortfall: Spread,
    /// |Δ log p| of the stored entries.
    log_p: Spread,
    /// |Δ log p| of the gold token.
    gold_log_p: Spread,
    /// |Δ log-sum-exp|.
    log_sum_exp: Spread,
    /// KL(exact ‖ stored) of a position; the bound is one of the mean.
    kl: Spread,
    /// Of the mean, as a sample of all positions.
    kl_standard_error: f64,
    within_bounds: bool,
}

/// Differences, in nats. What is not a finite number counts as infinite, which JSON shows as `null`.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    mean: f64,
    /// 99 of 100 are not above it.
    p99: f64,
    max: f64,
    bound: f64,
}

/// Draws records, labels them again, and prints the differences.
pub(super) fn audit(args: &LogAuditArgs) -> Result<(), Failure> {
    let log = LogReader::open(&args.log.dir)?;
    let tokenizer = open_tokenizer(&args.teacher)?;
    let (index, entry) = find_teacher(log.identity(), args, &tokenizer)?;
    let wanted = Wanted { teacher: index, computed_in: args.computed_in.map(computed_in) };
    let mut drawn = draw(&log, wanted, args.sample, args.seed)?;
    if drawn.is_empty() {
        let of =
            wanted.computed_in.map_or(String::new(), |numbers| format!(" that were computed in {}", numbers.name()));
        let message = format!("the log in {} holds no labels of teacher `{}`{of}", args.log.dir.display(), entry.name);
        return Err(Failure::new(ExitCode::NoInput, message));
    }
    let made: Vec<ComputedIn> = drawn.iter().map(|drawn| drawn.label.computed_in).collect();
    let samples = log.identity().tail_samples();
    for drawn in drawn.iter_mut().filter(|_| samples > 0) {
        drawn.label = drawn.label.head(drawn.label.top_k.saturating_sub(samples));
    }
    let pool = RolePool::alone("audit", args.threads).map_err(model_failure)?;
    let top_k = drawn.iter().map(|drawn| drawn.label.top_k).max().unwrap_or(0).clamp(1, tokenizer.len().max(1));
    let place = args.place.placement()?;
    let options = RunnerOptions { name: entry.name.clone(), index, top_k, tail: None, on: place.on_device() };
    let tally = pool.install(|| compare(Runner::load(&args.teacher, &tokenizer, options)?, drawn))?;
    let report = Report::new(entry, log.precision(), computed_in(place.precision), &made, tally);
    report.print(args.log.json)?;
    if report.within_bounds {
        return Ok(());
    }
    let message = format!(
        "labels of teacher `{}` in {} differ by more than precision `{}` allows: label again, or verify the log",
        report.teacher,
        args.log.dir.display(),
        report.precision
    );
    Err(Failure::new(ExitCode::DataError, message))
}

/// The labelling teacher of the log that has the folder's weights and tokenizer.
fn find_teacher<'a>(
    identity: &'a Identity,
    args: &LogAuditArgs,
    tokenizer: &Tokenizer,
) -> Result<(u16, &'a TeacherEntry), Failure> {
    let weights = model::fingerprint_weights(&args.teacher).map_err(model_failure)?;
    let labelling = || (0..).zip(&identity.teachers).filter(|(_, entry)| entry.labels);
    let wanted = |entry: &TeacherEntry| args.name.as_ref().is_none_or(|name| *name == entry.name);
    let candidates: Vec<_> = labelling().filter(|(_, entry)| wanted(entry)).collect();
    if let (Some(name), []) = (&args.name, candidates.as_slice()) {
        let known = names(labelling().map(|(_, entry)| entry), ", ");
        let message = format!("the log has no labels of a teacher `{name}`, only of {known}; correct --name");
        return Err(Failure::new(ExitCode::Usage, message));
    }
    let same = |entry: &TeacherEntry| {
        entry.weights_fingerprint == weights && entry.tokenizer_fingerprint == tokenizer.fingerprint()
    };
    let found: Vec<_> = candidates.iter().copied().filter(|(_, entry)| same(entry)).collect();
    match found.as_slice() {
        [only] => Ok(*only),
        [] => {
            let candidates: Vec<_> = candidates.into_iter().map(|(_, entry)| entry).collect();
            Err(another_teacher(args, &show_fingerprints(&weights, tokenizer.fingerprint()), &candidates))
        }
        several => {
            let names = names(several.iter().map(|(_, entry)| *entry), " and as ");
            Err(Failure::new(ExitCode::Usage, format!("the log has this teacher as {names}; choose one with --name")))
        }
    }
}

fn names<'a>(entries: impl Iterator<Item = &'a TeacherEntry>, between: &str) -> String {
    entries.map(|entry| format!("`{}`", entry.name)).collect::<Vec<_>>().join(between)
}

/// The folder's fingerprints, `own`, are those of none of the candidates.
fn another_teacher(args: &LogAuditArgs, own: &str, candidates: &[&TeacherEntry]) -> Failure {
    let stored = candidates.iter().map(|entry| {
        let fingerprints = show_fingerprints(&entry.weights_fingerprint, &entry.tokenizer_fingerprint);
        format!("`{}` has {fingerprints}", entry.name)
    });
    let stored = match candidates {
        [] => "no teacher has labelled".to_owned(),
        _ => stored.collect::<Vec<_>>().join("; "),
    };
    let message = format!(
        "the teacher in {} has {own}, but in the log {stored}; give the folder that its labels were made with",
        args.teacher.display()
    );
    Failure::new(ExitCode::Configuration, message)
}

fn show_fingerprints(weights: &str, tokenizer: &str) -> String {
    let short = |fingerprint: &str| fingerprint.chars().take(FINGERPRINT_DIGITS).collect::<String>();
    format!("weights {}… and tokenizer {}…", short(weights), short(tokenizer))
}

/// Labels the drawn copies again, and counts the differences.
fn compare(runner: Runner, mut drawn: Vec<Drawn>) -> Result<Tally, Failure> {
    let rows = runner.configuration().vocabulary_size;
    drawn.sort_by_key(|drawn| drawn.copy.token_ids.len());
    let mut tally = Tally::default();
    let mut rest = drawn.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(batch_length(rest));
        rest = after;
        for (drawn, recomputed) in batch.iter().zip(recompute(&runner, batch, rows)?) {
            tally.add(&drawn.label, &recomputed);
        }
    }
    Ok(tally)
}

/// How many of the copies, at least one, make a batch.
fn batch_length(copies: &[Drawn]) -> usize {
    let mut tokens = 0;
    let fitting = copies.iter().take_while(|drawn| {
        tokens += drawn.copy.token_ids.len();
        tokens <= BATCH_TOKENS
    });
    fitting.count().max(1)
}

/// What the teacher says of a batch now. It tells the logits of its top k, and of one more token per position, the gold one; a
/// stored entry that is not among its top k takes the place of that one in another pass.
fn recompute(runner: &Runner, batch: &[Drawn], rows: usize) -> Result<Vec<Recomputed>, Failure> {
    if let Some((drawn, id)) = batch.iter().find_map(|drawn| drawn.gold_beyond(rows).map(|id| (drawn, id))) {
        let message = format!("record {}: gold id {id}, but the teacher has {rows} words", drawn.sequence);
        return Err(Failure::new(ExitCode::DataError, message));
    }
    let label = |copies: &[&MaskedCopy]| -> Result<Vec<Label>, Failure> { Ok(runner.label(copies)?) };
    let copies: Vec<_> = batch.iter().map(|drawn| &drawn.copy).collect();
    let mut labels: Vec<_> = label(&copies)?.into_iter().map(Recomputed::new).collect();
    loop {
        let mut asked = Vec::new();
        for (at, (drawn, recomputed)) in batch.iter().zip(&labels).enumerate() {
            let wanted = recomputed.unknown(&drawn.label, rows);
            if !wanted.is_empty() {
                asked.push((at, drawn.asking_for(&wanted), wanted));
            }
        }
        if asked.is_empty() {
            return Ok(labels);
        }
        let copies: Vec<_> = asked.iter().map(|(_, copy, _)| copy).collect();
        for ((at, _, wanted), answer) in asked.iter().zip(label(&copies)?) {
            labels[*at].learn(wanted, &answer);
        }
    }
}

impl Report {
    /// `made` says what each record's label was computed in, `again` what all are now: the bounds are those of the coarsest.
    fn new(entry: &TeacherEntry, precision: Precision, again: ComputedIn, made: &[ComputedIn], tally: Tally) -> Self {
        let mut computed_in = BTreeMap::new();
        made.iter().for_each(|numbers| *computed_in.entry(numbers.name()).or_default() += 1);
        let (tolerance, divergence) = made
            .iter()
            .chain([&again])
            .map(|numbers| match numbers {
                ComputedIn::Float32 => (FLOAT_TOLERANCE, FLOAT_DIVERGENCE),
                ComputedIn::Bfloat16 => (BF16_TOLERANCE, BF16_DIVERGENCE),
                ComputedIn::Float16 => (F16_TOLERANCE, F16_DIVERGENCE),
            })
            .fold((0.0, 0.0), |(a, b), (c, d)| (f64::max(a, c), f64::max(b, d)));
        let (bound, kl_bound) = match precision == Precision::Exact {
            true => (tolerance, divergence),
            false => (COMPACT_TOLERANCE + tolerance, COMPACT_DIVERGENCE.max(divergence)),
        };
        // Ids are stored as they are, whatever the precision.
        let shortfall = Spread::of(tally.shortfall, 2.0 * tolerance);
        let [log_p, gold_log_p, log_sum_exp] =
            [tally.log_p, tally.gold_log_p, tally.log_sum_exp].map(|values| Spread::of(values, bound));
        let kl_standard_error = standard_error(&tally.kl);
        let kl = Spread::of(tally.kl, kl_bound);
        let kl_within = kl.mean - STANDARD_ERRORS * kl_standard_error <= kl.bound;
        let within_bounds =
            [shortfall, log_p, gold_log_p, log_sum_exp].iter().all(|spread| spread.max <= spread.bound) && kl_within;
        Self {
            teacher: entry.name.clone(),
            precision,
            records: made.len(),
            computed_in,
            positions: tally.positions,
            entries: tally.entries,
            id_sets_differ: tally.id_sets_differ,
            orders_differ: tally.orders_differ,
            shortfall,
            log_p,
            gold_log_p,
            log_sum_exp,
            kl,
            kl_standard_error,
            within_bounds,
        }
    }

    fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            return print_json(self);
        }
        let Self { teacher, precision, records, positions, entries, .. } = self;
        print_line(&format!(
            "teacher `{teacher}`, precision {precision}: {records} records, {positions} positions, {entries} entries"
        ))?;
        let computed_in: Vec<String> =
            self.computed_in.iter().map(|(numbers, records)| format!("{records} in {numbers}")).collect();
        print_line(&format!("labels computed in: {}", computed_in.join(", ")))?;
        print_line(&format!("{:<28}{:>11}{:>11}{:>11}{:>11}", "nats", "mean", "p99", "max", "bound"))?;
        let rows = [
            ("|Δ log p|, entries", &self.log_p),
            ("|Δ log p|, gold token", &self.gold_log_p),
            ("|Δ log-sum-exp|", &self.log_sum_exp),
            ("entry below the k-th logit", &self.shortfall),
            ("KL (the bound: of the mean)", &self.kl),
        ];
        for (name, Spread { mean, p99, max, bound }) in rows {
            print_line(&format!("{name:<28}{mean:>11.2e}{p99:>11.2e}{max:>11.2e}{bound:>11.2e}"))?;
        }
        print_line(&format!(
            "positions with other top-k ids: {}; with the same in another order: {}",
            self.id_sets_differ, self.orders_differ
        ))?;
        print_line(if self.within_bounds { "within bounds" } else { "NOT within bounds" })
    }
}

/// Of the mean of the values, which are a sample; not a number if one of them is none.
fn standard_error(values: &[f32]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum();
    (squares / (count - 1.0).max(1.0) / count).sqrt()
}

impl Spread {
    /// Of differences, which are not negative; all zero if there are none.
    fn of(mut values: Vec<f32>, bound: f64) -> Self {
        values.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = f32::INFINITY);
        values.sort_unstable_by(f32::total_cmp);
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        let at = |index: usize| values.get(index).map_or(0.0, |value| f64::from(*value));
        let p99 = at((values.len() * 99).div_ceil(100).saturating_sub(1));
        Self { mean: sum / values.len().max(1) as f64, p99, max: at(values.len().saturating_sub(1)), bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_knows_its_percentile() {
        let spread = Spread::of((1..=200).rev().map(|value| value as f32).collect(), 7.0);
        assert_eq!((spread.mean, spread.p99, spread.max, spread.bound), (100.5, 198.0, 200.0, 7.0));
        let none = Spread::of(Vec::new(), 0.0);
        assert_eq!((none.mean, none.p99, none.max), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        assert!((standard_error(&[1.0, 3.0, 1.0, 3.0]) - (4.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(standard_error(&[2.0]), 0.0);
        assert!(standard_error(&[1.0, f32::INFINITY]).is_nan());
    }

    #[test]
    fn what_is_no_number_is_beyond_every_bound() {
        for odd in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            assert_eq!(Spread::of(vec![0.0, odd, 0.0], 1.0).max, f64::INFINITY);
        }
    }
}
