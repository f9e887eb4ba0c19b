//! What the trainer reads from a log that is finished: shares, passes, and what happens when a language runs short.
#![allow(clippy::unwrap_used)]

mod scene;

use scene::Scene;
use std::collections::BTreeMap;
use store::{Entry, LogReader, LogWriter, Payload, SequenceNumber, SourceCursor};
use trainer::sampler::{Draw, Sampler, SamplerOptions, SamplerState, Window};
use trainer::{Input, Inputs, WhenShort};

/// Source (which is its language), characters available, records. What was labelled of a language says nothing about its size.
const SOURCES: [(&str, u64, u64); 4] =
    [("de", 40_000, 90), ("en", 160_000, 60), ("fi", 20_000, 150), ("tr", 80_000, 30)];

fn options(alpha: f64) -> SamplerOptions {
    SamplerOptions {
        shuffle_examples: 4096,
        alpha,
        max_passes: 0,
        when_short: WhenShort::Wait,
        inputs: Inputs::default(),
    }
}

/// Appends records of `source` until it has `records` of them in the log, and its end, if it has one.
fn append(writer: &mut LogWriter, source: &str, characters: u64, records: u64, ends: bool) {
    let first = writer.cursors().get(source).map_or(0, |cursor| cursor.document_offset_bytes + 1);
    let mut entries = Vec::new();
    for document in first..records + u64::from(ends) {
        let sequence = SequenceNumber(writer.next().0 + entries.len() as u64);
        let mut cursor = SourceCursor::start(source.into(), source.into(), characters);
        (cursor.document_offset_bytes, cursor.ended) = (document, document == records);
        let payload = if cursor.ended {
            Payload::End
        } else {
            let example = scene::example(if source == "de" { "de" } else { "en" });
            let Payload::Record(mut record) = scene::entry(example, sequence.0).payload else { continue };
            (record.source, record.language) = (source.into(), source.into());
            Payload::Record(record)
        };
        entries.push(Entry { sequence, cursor, payload });
    }
    writer.append(&entries).unwrap();
    writer.sync().unwrap();
}

/// A log of `SOURCES` that is closed.
fn finished() -> (Scene, LogReader) {
    let scene = Scene::new();
    let mut writer = scene.writer();
    for part in 1..=3 {
        for (source, characters, records) in SOURCES {
            append(&mut writer, source, characters, records * part / 3, part == 3);
        }
    }
    writer.seal().unwrap();
    let reader = scene.reader();
    (scene, reader)
}

fn window(sampler: &mut Sampler, log: &LogReader) -> Option<Window> {
    match sampler.window(log, log.durable()).unwrap() {
        Draw::Window(window) => Some(window),
        Draw::Exhausted => None,
        Draw::Short(short) => panic!("it waits for {short:?}"),
    }
}

/// Times that each record was read, by language.
fn count(windows: &[Window]) -> BTreeMap<String, BTreeMap<SequenceNumber, usize>> {
    let mut counts: BTreeMap<String, BTreeMap<SequenceNumber, usize>> = BTreeMap::new();
    for example in windows.iter().flat_map(|window| &window.examples) {
        let language = counts.entry(example.entry.cursor.language.to_string()).or_default();
        *language.entry(example.entry.sequence).or_default() += 1;
    }
    counts
}

/// The realised share of every language, over a few hundred thousand examples, is within 1 % of n^α / Σ n^α.
#[test]
fn shares_are_those_of_alpha_whatever_was_labelled() {
    let (_scene, log) = finished();
    for alpha in [0.3, 0.7, 1.0] {
        let mut sampler = Sampler::new(11, options(alpha), SamplerState::default());
        let windows: Vec<Window> = (0..120).map(|_| window(&mut sampler, &log).unwrap()).collect();
        let counts = count(&windows);
        let total: f64 = SOURCES.iter().map(|(_, characters, _)| (*characters as f64).powf(alpha)).sum();
        let drawn: usize = counts.values().flat_map(BTreeMap::values).sum();
        for (language, characters, records) in SOURCES {
            let expected = (characters as f64).powf(alpha) / total;
            let share = counts[language].values().sum::<usize>() as f64 / drawn as f64;
            let off = 100.0 * (share / expected - 1.0);
            println!("α {alpha}  {language}  expected {expected:.5}  realised {share:.5}  ({off:+.2} %)");
            assert!(off.abs() < 1.0, "α {alpha}, {language}: {share:.5}, not {expected:.5} ({off:+.2} %)");
            // Pass after pass over all that was labelled.
            assert_eq!(counts[language].len() as u64, records);
            let (least, most) = (counts[language].values().min().unwrap(), counts[language].values().max().unwrap());
            assert!(most - least <= 1, "{language}: between {least} and {most} times");
        }
    }
}

#[test]
fn every_record_is_read_as_often_as_max_passes_says() {
    let (_scene, log) = finished();
    for max_passes in [1, 3] {
        let options = SamplerOptions { max_passes, shuffle_examples: 64, ..options(0.7) };
        let mut sampler = Sampler::new(11, options, SamplerState::default());
        let windows: Vec<Window> = std::iter::from_fn(|| window(&mut sampler, &log)).collect();
        let counts = count(&windows);
        for (language, _, records) in SOURCES {
            assert_eq!(counts[language].len() as u64, records);
            let passes = max_passes as usize;
            assert!(counts[language].values().all(|times| *times == passes), "{language}, {max_passes} passes");
        }
        let reread = windows.iter().flat_map(|window| &window.examples).map(|example| example.pass).max();
        assert_eq!(reread, Some(max_passes - 1));
        assert!(matches!(sampler.window(&log, log.durable()).unwrap(), Draw::Exhausted), "and it stays so");
    }
}

#[test]
fn a_language_that_runs_short_waits_or_replays() {
    let inputs: Vec<Input> =
        ["de", "en"].map(|name| Input { source: name.to_owned(), language: name.to_owned(), finite: true }).to_vec();
    for when_short in [WhenShort::Wait, WhenShort::Replay] {
        let scene = Scene::new();
        let mut writer = scene.writer();
        append(&mut writer, "en", 1000, 100, false);
        append(&mut writer, "de", 1000, 4, false);
        let log = writer.reader();
        let options =
            SamplerOptions { when_short, shuffle_examples: 40, inputs: inputs.clone().into(), ..options(1.0) };
        let mut sampler = Sampler::new(11, options, SamplerState::default());
        let before = sampler.state().clone();
        let draw = sampler.window(&log, log.durable()).unwrap();
        match (when_short, draw) {
            (WhenShort::Wait, Draw::Short(short)) => {
                assert_eq!(short.language, "de");
                assert_eq!(*sampler.state(), before, "nothing was drawn");
                append(&mut writer, "de", 1000, 60, false);
                let counts = count(&[window(&mut sampler, &log).unwrap()]);
                assert!(counts.values().flat_map(BTreeMap::values).all(|times| *times == 1), "each once");
            }
            (WhenShort::Replay, Draw::Window(first)) => {
                let counts = count(&[first]);
                assert_eq!(
                    (counts["de"].len(), counts["en"].values().max()),
                    (4, Some(&1)),
                    "German alone is replayed"
                );
                let share = counts["de"].values().sum::<usize>();
                assert!((12..=28).contains(&share), "its share is kept: {share} of 40");
                // What is new comes first, each once.
                append(&mut writer, "de", 1000, 5, false);
                let counts = count(&[window(&mut sampler, &log).unwrap()]);
                assert!(counts["de"].contains_key(&SequenceNumber(104)), "{counts:?}");
            }
            (_, draw) => panic!("{when_short:?}: {draw:?}"),
        }
    }
}
