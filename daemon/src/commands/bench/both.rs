//! `mergedistill bench both`: what labelling and training cost each other, on a share of the cores each.
//!
//! Both have a pool and a thread of their own, as in a run, but neither lends its threads to the other: a side alone has the same
//! share of the cores as beside the other. A window counts whole batches and steps that end within it, and
//! divides by the time at which the last of them ended. In a window of both, neither stops before the other has its count: all
//! that is counted had the other beside it.

use super::labelling::{Examples, Labelling};
use super::training::Training;
use super::{count, median, memory, peak_rss_mib, pool};
use crate::cli::BenchBothArgs;
use crate::commands::{print_json, print_line};
use crate::failure::{ExitCode, Failure};
use model::random::Philox;
use rayon::ThreadPool;
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Debug, Serialize)]
struct BothFigures {
    label_threads: usize,
    train_threads: usize,
    /// Length of a window.
    seconds: f64,
    rounds: usize,
    label: SideFigures,
    train: SideFigures,
    peak_rss_mib: Option<u64>,
}

/// One side's figures: medians of the rounds.
#[derive(Debug, Serialize)]
struct SideFigures {
    alone_tokens_per_second: f64,
    together_tokens_per_second: f64,
    /// Together, against alone.
    ratio: f64,
    /// The fewest batches, or steps, that a window came to.
    fewest_in_window: usize,
}

/// Measures both sides, and prints the figures.
pub(super) fn both(args: &BenchBothArgs) -> Result<(), Failure> {
    let figures = measure(args)?;
    if args.common.json {
        return print_json(&figures);
    }
    let sides = [("labelling", &figures.label, args.label_threads), ("training", &figures.train, args.train_threads)];
    for (name, side, threads) in sides {
        print_line(&format!(
            "{name}: {:.0} tokens/s alone, {:.0} together, {:.3} ×, with {}",
            side.alone_tokens_per_second,
            side.together_tokens_per_second,
            side.ratio,
            count(threads, "thread")
        ))?;
    }
    let rounds = count(args.rounds, "round");
    print_line(&format!("medians of {rounds} of {} s; peak memory {}", args.seconds, memory(figures.peak_rss_mib)))
}

fn measure(args: &BenchBothArgs) -> Result<BothFigures, Failure> {
    let (label_pool, train_pool) = (pool(args.label_threads, "label")?, pool(args.train_threads, "train")?);
    let examples = Examples::read(&args.label, &args.common, &args.place)?;
    let labelling = label_pool.install(|| examples.load_teacher())?;
    let place = args.place.placement()?.into();
    let training = train_pool.install(|| Training::new(&args.train, &args.common, &place))?;
    let mut sides = [labelling_side(&labelling, &label_pool), training_side(training, &train_pool)];

    let length = Duration::from_secs_f64(args.seconds);
    window(&mut sides, length)?; // warms up
    let (mut alone, mut together) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..args.rounds {
        for (side, alone) in sides.iter_mut().zip(&mut alone) {
            alone.append(&mut window(std::slice::from_mut(side), length)?);
        }
        for (done, together) in window(&mut sides, length)?.into_iter().zip(&mut together) {
            together.push(done);
        }
    }
    let [label, train] = [0, 1].map(|side| SideFigures::of(&alone[side], &together[side]));
    Ok(BothFigures {
        label_threads: args.label_threads,
        train_threads: args.train_threads,
        seconds: args.seconds,
        rounds: args.rounds,
        label,
        train,
        peak_rss_mib: peak_rss_mib(),
    })
}

impl SideFigures {
    fn of(alone: &[Done], together: &[Done]) -> Self {
        let rate = |windows: &[Done]| median(&windows.iter().map(Done::tokens_per_second).collect::<Vec<f64>>());
        let (alone_tokens_per_second, together_tokens_per_second) = (rate(alone), rate(together));
        Self {
            alone_tokens_per_second,
            together_tokens_per_second,
            ratio: together_tokens_per_second / alone_tokens_per_second,
            fewest_in_window: alone.iter().chain(together).map(|done| done.units).min().unwrap_or(0),
        }
    }
}

/// What is done again and again on a thread of its own.
struct Side<'a> {
    /// Of its thread.
    name: &'static str,
    /// Does the unit (a batch, a step) with this number in the window. Returns its tokens.
    work: Box<dyn FnMut(usize) -> Result<usize, Failure> + Send + 'a>,
}

/// Every window begins with the same batch, and batches come in a mixed order (they are made in that of their lengths), so that
/// windows of different extent have about the same mixture of lengths.
fn labelling_side<'a>(labelling: &'a Labelling, pool: &'a ThreadPool) -> Side<'a> {
    let mut order: Vec<usize> = (0..labelling.batches().len()).collect();
    Philox::new(0, "bench", &[b"both"]).shuffle(&mut order, 0);
    let work = move |number: usize| {
        let batch = order[number % order.len()];
        pool.install(|| labelling.label(batch))?;
        Ok(labelling.batches()[batch].iter().map(|copy| copy.token_ids.len()).sum())
    };
    Side { name: "label", work: Box::new(work) }
}

fn training_side<'a>(mut training: Training<'a>, pool: &'a ThreadPool) -> Side<'a> {
    let work = move |_| {
        let batch = training.next_batch();
        pool.install(|| training.learn(&batch))?;
        Ok(batch.tokens)
    };
    Side { name: "train", work: Box::new(work) }
}

/// What a side did in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    units: usize,
    tokens: usize,
    /// From the beginning of the window to the end of the last unit.
    seconds: f64,
}

impl Done {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// Lets `sides` work at the same time, and counts what each finishes within `length`; at least one unit, however long it takes.
fn window(sides: &mut [Side<'_>], length: Duration) -> Result<Vec<Done>, Failure> {
    let counting = AtomicUsize::new(sides.len());
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot start a thread: {error}"));
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for side in sides {
            let own = Counting(&counting);
            let thread = thread::Builder::new().name(side.name.to_owned());
            threads.push(thread.spawn_scoped(scope, move || work_off(side, length, own)));
        }
        let join = |thread: std::io::Result<thread::ScopedJoinHandle<'_, Result<Done, Failure>>>| {
            thread.map_err(failed)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

/// One side of a window.
fn work_off(side: &mut Side<'_>, length: Duration, own: Counting<'_>) -> Result<Done, Failure> {
    let (counting, mut own) = (own.0, Some(own));
    let (start, mut done) = (Instant::now(), Done::default());
    for number in 0.. {
        let tokens = (side.work)(number)?;
        let elapsed = start.elapsed();
        if elapsed <= length || done.units == 0 {
            done = Done { units: number + 1, tokens: done.tokens + tokens, seconds: elapsed.as_secs_f64() };
        }
        if elapsed >= length {
            own.take();
        }
        if counting.load(Ordering::Relaxed) == 0 {
            break;
        }
    }
    Ok(done)
}

/// A side that is not through with its window; also one that fails or panics ends.
struct Counting<'a>(&'a AtomicUsize);

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::mpsc;

    fn side<'a>(work: impl FnMut(usize) -> Result<usize, Failure> + Send + 'a) -> Side<'a> {
        Side { name: "side", work: Box::new(work) }
    }

    #[test]
    fn a_side_goes_on_until_the_other_has_its_count_and_counts_no_more() {
        let (tell, told) = mpsc::channel();
        let quick = side(move |number| {
            let _ = tell.send(number); // Nobody listens after the slow side's only unit.
            Ok(7)
        });
        let slow = side(move |_| Ok(told.iter().take(5).sum()));
        let done = window(&mut [quick, slow], Duration::ZERO).unwrap();
        let counts: Vec<_> = done.iter().map(|done| (done.units, done.tokens)).collect();
        assert_eq!(counts, [(1, 7), (1, 10)]);
    }

    #[test]
    fn a_window_counts_whole_units_until_the_last_that_ends_within_it() {
        let length = Duration::from_millis(50);
        let done = window(&mut [side(|number| Ok(number + 1))], length).unwrap()[0];
        assert!(done.units > 1 && done.seconds <= length.as_secs_f64(), "{done:?}");
        assert_eq!(done.tokens, done.units * (done.units + 1) / 2);
        assert!((done.tokens_per_second() * done.seconds - done.tokens as f64).abs() < 0.5);
    }

    #[test]
    fn a_side_that_fails_ends_the_window() {
        let failing = side(|_| Err(Failure::new(ExitCode::Software, "broken")));
        let failure = window(&mut [side(|_| Ok(1)), failing], Duration::from_millis(1)).unwrap_err();
        assert_eq!(failure.message, "broken");
    }
}
