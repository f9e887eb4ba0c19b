#![allow(clippy::unwrap_used)]

use super::*;
use crate::records::memory::MemoryLog;

fn options(inputs: &[&str]) -> SamplerOptions {
    SamplerOptions {
        shuffle_examples: 8,
        alpha: 0.7,
        max_passes: 0,
        when_short: WhenShort::Wait,
        inputs: inputs
            .iter()
            .map(|source| {
                let language = source.split('/').next().unwrap().to_owned();
                Input { source: (*source).to_owned(), language, finite: true }
            })
            .collect(),
    }
}

/// A log that interleaves `records` records of each source, then ends them all.
fn finite(sources: &[(&str, u64, usize)]) -> MemoryLog {
    let mut log = MemoryLog::default();
    interleave(&mut log, sources);
    end(&mut log, sources);
    log
}

fn interleave(log: &mut MemoryLog, sources: &[(&str, u64, usize)]) {
    for index in 0..sources.iter().map(|source| source.2).max().unwrap() {
        for (source, characters, _) in sources.iter().filter(|source| index < source.2) {
            log.record(source, *characters, Vec::new());
        }
    }
}

fn end(log: &mut MemoryLog, sources: &[(&str, u64, usize)]) {
    for (source, characters, _) in sources {
        log.end(source, *characters);
    }
}

fn draw(sampler: &mut Sampler, log: &MemoryLog) -> Draw {
    sampler.window(log, log.durable()).unwrap()
}

/// (sequence number, pass) of a window's examples.
fn examples(draw: Draw) -> Vec<(u64, u64)> {
    match draw {
        Draw::Window(window) => {
            window.examples.iter().map(|example| (example.entry.sequence.0, example.pass)).collect()
        }
        other => panic!("no window: {other:?}"),
    }
}

fn languages(draw: Draw) -> Vec<String> {
    let Draw::Window(window) = draw else { panic!("no window: {draw:?}") };
    window.examples.iter().map(|example| example.entry.cursor.language.to_string()).collect()
}

#[test]
fn shares_follow_alpha() {
    let sources = [("en", 1_000_000, 30), ("de", 100_000, 30), ("fi", 10_000, 30)];
    let log = finite(&sources);
    for alpha in [0.0, 0.3, 0.7, 1.0] {
        let options = SamplerOptions { shuffle_examples: 30_000, alpha, ..options(&["en", "de", "fi"]) };
        let drawn = languages(draw(&mut Sampler::new(3, options, SamplerState::default()), &log));
        let total: f64 = sources.iter().map(|(_, n, _)| (*n as f64).powf(alpha)).sum();
        for (language, n, _) in sources {
            let expected = (n as f64).powf(alpha) / total;
            let share = drawn.iter().filter(|name| *name == language).count() as f64 / drawn.len() as f64;
            // Five standard deviations.
            let tolerance = 5.0 * (expected * (1.0 - expected) / drawn.len() as f64).sqrt();
            assert!((share - expected).abs() < tolerance, "α {alpha}, {language}: {share}, not {expected}");
        }
    }
}

#[test]
fn characters_of_a_language_are_summed_over_its_training_sources() {
    // `de` has two sources of 500 and a large one for evaluation, `en` one of 1000: equal shares.
    let mut log = finite(&[("en", 1000, 20), ("de/a", 500, 20), ("de/b", 500, 20)]);
    log.held_out("evaluate/de", 1_000_000);
    log.end("evaluate/de", 1_000_000);
    let options = SamplerOptions { shuffle_examples: 20_000, alpha: 1.0, ..options(&["en", "de/a", "de/b"]) };
    let drawn = languages(draw(&mut Sampler::new(3, options, SamplerState::default()), &log));
    let share = drawn.iter().filter(|name| *name == "de").count() as f64 / drawn.len() as f64;
    assert!((share - 0.5).abs() < 0.02, "{share}");
}

#[test]
fn a_languages_records_come_in_order_and_held_out_ones_never() {
    let mut log = MemoryLog::default();
    for index in 0..40 {
        if index % 4 == 0 {
            log.held_out("en", 100);
        } else {
            log.record("en", 100, Vec::new());
        }
    }
    log.end("en", 100);
    let mut sampler = Sampler::new(1, options(&["en"]), SamplerState::default());
    let mut read = Vec::new();
    for _ in 0..3 {
        read.extend(examples(draw(&mut sampler, &log)).iter().map(|example| example.0));
    }
    let expected: Vec<u64> = (0..40).filter(|sequence| sequence % 4 != 0).take(24).collect();
    assert_eq!(read, expected);
}

#[test]
fn windows_depend_on_seed_number_and_cursors() {
    let log = finite(&[("en", 900, 200), ("de", 400, 200)]);
    let windows = |seed| {
        let mut sampler = Sampler::new(seed, options(&["en", "de"]), SamplerState::default());
        (0..12).map(|_| examples(draw(&mut sampler, &log))).collect::<Vec<_>>()
    };
    assert_eq!(windows(1), windows(1));
    assert_ne!(windows(1), windows(2));
    // From a stored state, the same windows follow.
    let mut sampler = Sampler::new(1, options(&["en", "de"]), SamplerState::default());
    for _ in 0..5 {
        draw(&mut sampler, &log);
    }
    let json = serde_json::to_string(sampler.state()).unwrap();
    let mut resumed = Sampler::new(1, options(&["en", "de"]), serde_json::from_str(&json).unwrap());
    for _ in 0..5 {
        assert_eq!(examples(draw(&mut resumed, &log)), examples(draw(&mut sampler, &log)));
        assert_eq!(resumed.state(), sampler.state());
    }
}

/// Draws up to `count` windows while the log grows by `step` entries whenever the sampler waits (or before every
/// attempt, if `eager`).
fn follow(log: &MemoryLog, options: &SamplerOptions, count: usize, step: u64, eager: bool) -> Vec<Vec<(u64, u64)>> {
    let mut sampler = Sampler::new(7, options.clone(), SamplerState::default());
    let mut windows = Vec::new();
    let mut shown = 0;
    while windows.len() < count {
        if eager {
            shown += step;
        }
        log.show(shown);
        match draw(&mut sampler, log) {
            Draw::Exhausted => break,
            Draw::Short(_) => {
                assert!(shown < log.len(), "waits although everything has ended");
                shown += step;
            }
            window @ Draw::Window(_) => windows.push(examples(window)),
        }
    }
    windows
}

#[test]
fn windows_of_finite_corpora_do_not_depend_on_when_the_log_grew() {
    // A window's worth of `en` is there before the others begin.
    let sources = [("en", 5000, 60), ("de", 300, 40), ("fi", 2000, 7), ("tr", 100, 1)];
    let mut log = MemoryLog::default();
    interleave(&mut log, &[("en", 5000, 30)]);
    interleave(&mut log, &sources);
    end(&mut log, &sources);
    for max_passes in [0, 1, 2, 3] {
        let options = SamplerOptions { max_passes, ..options(&["en", "de", "fi", "tr"]) };
        let reference = follow(&log, &options, 40, log.len(), true);
        for (step, eager) in [(1, false), (1, true), (3, false), (17, true), (50, false)] {
            assert_eq!(follow(&log, &options, 40, step, eager), reference, "step {step}, {max_passes} passes");
        }
        let total: usize = reference.iter().map(Vec::len).sum();
        let expected = if max_passes == 0 { 320 } else { (138 * max_passes as usize).min(320) };
        assert_eq!(total, expected, "{max_passes} passes over 138 records, at most 40 windows");
    }
}

#[test]
fn waits_for_the_language_that_is_short_and_changes_nothing() {
    let mut log = MemoryLog::default();
    for _ in 0..20 {
        log.record("en", 1000, Vec::new());
    }
    let mut sampler = Sampler::new(1, options(&["en", "de"]), SamplerState::default());
    let before = sampler.state().clone();
    // `de` is not in the log at all, then it has too little.
    for _ in 0..2 {
        let Draw::Short(short) = draw(&mut sampler, &log) else { panic!("should wait") };
        assert_eq!(short.language, "de");
        assert_eq!(*sampler.state(), before);
        log.record("de", 1000, Vec::new());
    }
    let reads = log.reads.get();
    assert!(matches!(draw(&mut sampler, &log), Draw::Short(_)));
    assert!(log.reads.get() > reads + 1, "a new record: the window is drawn again");
    let reads = log.reads.get();
    log.record("en", 1000, Vec::new());
    assert!(matches!(draw(&mut sampler, &log), Draw::Short(_)));
    assert_eq!(log.reads.get(), reads + 1, "no new record: one look is enough");
    log.end("de", 1000);
    assert_eq!(examples(draw(&mut sampler, &log)).len(), 8);
}

#[test]
fn replays_while_waiting_and_takes_new_records_first() {
    let mut log = MemoryLog::default();
    let options = SamplerOptions { when_short: WhenShort::Replay, shuffle_examples: 5, ..options(&["en"]) };
    let mut sampler = Sampler::new(1, options, SamplerState::default());
    assert!(matches!(draw(&mut sampler, &log), Draw::Short(_)), "nothing to replay");
    log.record("en", 10, Vec::new());
    log.record("en", 10, Vec::new());
    assert_eq!(examples(draw(&mut sampler, &log)), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
    log.record("en", 10, Vec::new());
    assert_eq!(examples(draw(&mut sampler, &log)), [(2, 0), (1, 2), (2, 2), (0, 3), (1, 3)]);
    log.end("en", 10);
    assert_eq!(examples(draw(&mut sampler, &log)), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]);
}

#[test]
fn a_language_drops_out_after_its_passes() {
    let log = finite(&[("en", 1000, 10), ("de", 1000, 3)]);
    let options = SamplerOptions { max_passes: 2, shuffle_examples: 13, ..options(&["en", "de"]) };
    let mut sampler = Sampler::new(1, options, SamplerState::default());
    let mut drawn = examples(draw(&mut sampler, &log));
    drawn.extend(examples(draw(&mut sampler, &log)));
    assert!(matches!(draw(&mut sampler, &log), Draw::Exhausted));
    drawn.sort_unstable();
    let mut expected: Vec<(u64, u64)> = (0..13).flat_map(|sequence| [(sequence, 0), (sequence, 1)]).collect();
    expected.sort_unstable();
    assert_eq!(drawn, expected, "every record exactly twice");
}

#[test]
fn a_language_without_trainable_records_drops_out() {
    let mut log = finite(&[("en", 1000, 4)]);
    log.held_out("de", 100_000);
    let mut sampler = Sampler::new(1, options(&["en", "de"]), SamplerState::default());
    let Draw::Short(short) = draw(&mut sampler, &log) else { panic!("its input is open") };
    assert_eq!(short.language, "de");
    log.end("de", 100_000);
    assert!(languages(draw(&mut sampler, &log)).iter().all(|language| language == "en"));
    let mut alone = Sampler::new(1, options(&["de"]), SamplerState::default());
    let mut log = MemoryLog::default();
    log.held_out("de", 1);
    log.end("de", 1);
    assert!(matches!(draw(&mut alone, &log), Draw::Exhausted));
}

#[test]
fn a_log_alone_has_ended() {
    // Labelling was stopped half-way: no source says that it has ended.
    let mut log = MemoryLog::default();
    for _ in 0..5 {
        log.record("en", 1000, Vec::new());
    }
    let drawn = examples(draw(&mut Sampler::new(1, options(&[]), SamplerState::default()), &log));
    assert_eq!(drawn, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (1, 1), (2, 1)]);
    let empty = MemoryLog::default();
    assert!(matches!(draw(&mut Sampler::new(1, options(&[]), SamplerState::default()), &empty), Draw::Exhausted));
}

#[test]
fn a_stream_on_which_nothing_has_arrived_holds_nobody_up() {
    let mut stream = options(&["en", "de"]);
    let mut inputs = stream.inputs.get().to_vec();
    inputs[1].finite = false;
    stream.inputs = inputs.into();
    let mut log = MemoryLog::default();
    let mut sampler = Sampler::new(1, stream.clone(), SamplerState::default());
    assert!(matches!(draw(&mut sampler, &log), Draw::Short(_)));
    for _ in 0..8 {
        log.record("en", 1000, Vec::new());
    }
    assert_eq!(examples(draw(&mut sampler, &log)).len(), 8);
    // When everything else is used up, it is waited for.
    let options = SamplerOptions { max_passes: 1, ..stream };
    log.end("en", 1000);
    let mut sampler = Sampler::new(1, options, sampler.state().clone());
    let Draw::Short(short) = draw(&mut sampler, &log) else { panic!("the stream is open") };
    assert_eq!(short.language, "de");
    for _ in 0..8 {
        log.record("de", 10, Vec::new());
    }
    assert!(languages(draw(&mut sampler, &log)).iter().all(|language| language == "de"));
}

#[test]
fn inputs_that_change_while_it_runs_are_taken_up_by_the_next_window() {
    let mut log = MemoryLog::default();
    interleave(&mut log, &[("en", 1000, 16)]);
    let options = options(&["en"]);
    let inputs = options.inputs.clone();
    let mut sampler = Sampler::new(1, options, SamplerState::default());
    assert_eq!(examples(draw(&mut sampler, &log)).len(), 8);
    let input = |source: &str| Input { source: source.to_owned(), language: source.to_owned(), finite: true };
    inputs.set(vec![input("en"), input("de")]);
    let Draw::Short(short) = draw(&mut sampler, &log) else { panic!("the new source has no entry yet") };
    assert_eq!(short.language, "de");
    inputs.set(vec![input("en")]);
    assert_eq!(examples(draw(&mut sampler, &log)).len(), 8);
}

#[test]
fn a_new_input_brings_a_language_back() {
    let mut log = finite(&[("en/a", 1000, 8)]);
    let once = |inputs: &[&str]| SamplerOptions { max_passes: 1, ..options(inputs) };
    let mut sampler = Sampler::new(1, once(&["en/a"]), SamplerState::default());
    draw(&mut sampler, &log);
    assert!(matches!(draw(&mut sampler, &log), Draw::Exhausted));
    for _ in 0..8 {
        log.record("en/b", 500, Vec::new());
    }
    let mut sampler = Sampler::new(1, once(&["en/a", "en/b"]), sampler.state().clone());
    let expected: Vec<(u64, u64)> = (9..17).map(|sequence| (sequence, 0)).collect();
    assert_eq!(examples(draw(&mut sampler, &log)), expected);
}

#[test]
fn backlog_starts_at_the_oldest_record_not_read() {
    let log = finite(&[("en", 1000, 30), ("de", 1000, 3)]);
    let mut sampler = Sampler::new(1, options(&["en", "de"]), SamplerState::default());
    let oldest = |sampler: &Sampler| sampler.state().oldest_unread(&log, log.durable()).unwrap().map(|s| s.0);
    assert_eq!(oldest(&sampler), Some(0));
    let mut read: Vec<u64> = Vec::new();
    while let Some(oldest) = oldest(&sampler) {
        let unread = (0..33).find(|sequence| !read.contains(sequence)).unwrap();
        assert_eq!(oldest, unread);
        read.extend(examples(draw(&mut sampler, &log)).iter().map(|example| example.0));
    }
    assert!((0..33).all(|sequence| read.contains(&sequence)));
}

#[test]
fn what_retention_removed_is_neither_read_nor_replayed() {
    let log = finite(&[("en", 1000, 10), ("de", 1000, 1)]);
    log.remove_below(4);
    let mut sampler = Sampler::new(1, SamplerOptions { shuffle_examples: 12, ..options(&[]) }, SamplerState::default());
    let window = match draw(&mut sampler, &log) {
        Draw::Window(window) => window,
        other => panic!("no window: {other:?}"),
    };
    assert_eq!((window.view.begin, window.oldest()), (SequenceNumber(4), SequenceNumber(4)));
    // Seven records of `en` are left, none of `de`: it drops out.
    let drawn = examples(Draw::Window(window.clone()));
    let expected: Vec<(u64, u64)> = (0..12).map(|at| (4 + at % 7, at / 7)).collect();
    assert_eq!(drawn, expected);

    // The next window has another beginning; each is formed again as it was, whatever was removed since that it did not read.
    log.remove_below(6);
    let next = examples(draw(&mut sampler, &log));
    assert_eq!(next[..3], [(9, 1), (10, 1), (6, 2)]);
    log.remove_below(4);
    let again = |begin: u64, state: &SamplerState| {
        let options = SamplerOptions { shuffle_examples: 12, ..options(&[]) };
        let mut sampler = Sampler::new(1, options, state.clone());
        let draw = sampler.window_again(&log, SequenceNumber(begin), log.durable(), Some(&window.view.open)).unwrap();
        (examples(draw), sampler.state().clone())
    };
    let (first, state) = again(4, &window.before);
    assert_eq!(first, drawn);
    assert_eq!(again(6, &state), (next, sampler.state().clone()));
}
