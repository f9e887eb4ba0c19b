//! Which records are trained on, in windows.
//!
//! A window holds `shuffle_examples` examples. For each, a language is drawn with a share ∝ n_k^α, and the example is
//! that language's next record at its cursor into the log. n_k counts characters available, summed over the sources of
//! the language (sources for evaluation alone excluded).
//!
//! A window is a function of (seed, window number, cursors, B, D, open inputs) alone, where the log is read from B, the first entry
//! that retention had left, up to the durable position D, and the open inputs are the sources of which more may come
//! ([`OpenInputs`]). With finite corpora it does not even depend on D: a language that has no further record below D while its input is open makes the sampler
//! *wait* (no window is formed and nothing changes). The first window, and the first after a finite source was added, waits
//! for the first entry of every finite source, so that n_k is known. That is why a language drops out only when it is drawn
//! and found to have nothing more, never ahead of time.
//!
//! | language drawn has…           | input open                          | input ended                              |
//! | ----------------------------- | ----------------------------------- | ---------------------------------------- |
//! | a record at or after its cursor | take it                           | take it                                  |
//! | none, but records before it   | wait, or replay them meanwhile      | next pass from the start, or drop out after `max_passes` |
//! | no records at all             | wait                                | drop out                                 |
//!
//! Both replays begin at B: what retention removed is not read again, and a language of which nothing is left drops out.
//!
//! What a replay reads depends on when the window was formed; the journal holds its B, D and open inputs, so that a window is
//! formed again as it was although sources were added or removed since, and segments of the log. The journal also holds the
//! oldest entry that the window read, and as long as the window may have to be formed again retention leaves that one.

use crate::error::TrainerError;
use crate::inputs::{Input, Inputs};
use crate::options::WhenShort;
use crate::records::{EVALUATION_PREFIX, Records};
use model::random::Philox;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{DurablePosition, Entry, SequenceNumber, SourceCursor};

/// How windows are drawn.
#[derive(Clone, Debug)]
pub struct SamplerOptions {
    /// Examples of a window.
    pub shuffle_examples: usize,
    /// A language's share is ∝ n_k^alpha.
    pub alpha: f64,
    /// Times that a language's records may be gone through; 0: as often as needed.
    pub max_passes: u64,
    /// What a language does that runs short while its input is open.
    pub when_short: WhenShort,
    /// What ingestion reads for training, now or later in this run; a source that is not listed has ended, whatever
    /// the log says. Empty: train from the log alone.
    pub inputs: Inputs,
}

/// The inputs of which more may come when a window is formed: source → language.
pub type OpenInputs = BTreeMap<String, String>;

/// Where sampling stands, between two windows. Part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    /// Number of the next window.
    pub window: u64,
    /// Cursor of every language drawn so far.
    pub cursors: BTreeMap<String, LanguageCursor>,
}

/// How far a language's records have been gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageCursor {
    /// The next record is the first at or after this.
    pub next: SequenceNumber,
    /// Times that the records have been gone through to the end.
    pub pass: u64,
    /// Where old records are read again while new ones are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Whether the language has dropped out of the draw.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
}

/// A cursor of its own for reading old records again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The next record is the first at or after this.
    pub next: SequenceNumber,
    /// Times that the records have been replayed to the end.
    pub pass: u64,
}

impl SamplerState {
    /// The oldest record that is still to be read for the first time, below `durable`; `None` if there is none. What
    /// lies from it to the end of the log is the trainer's backlog.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn oldest_unread(
        &self,
        records: &dyn Records,
        durable: DurablePosition,
    ) -> Result<Option<SequenceNumber>, TrainerError> {
        let mut oldest: Option<SequenceNumber> = None;
        let languages = records.cursors(durable)?;
        let mut languages: Vec<&str> = languages.values().map(|cursor| &*cursor.language).collect();
        languages.sort_unstable();
        languages.dedup();
        for language in languages {
            let cursor = self.cursors.get(language).copied().unwrap_or_default();
            if cursor.pass > 0 || cursor.finished {
                continue;
            }
            if let Some(entry) = records.next_record(language, false, cursor.next, durable)? {
                oldest = Some(oldest.map_or(entry.sequence, |oldest| oldest.min(entry.sequence)));
            }
        }
        Ok(oldest)
    }
}

/// One drawn example.
#[derive(Clone, Debug)]
pub struct Example {
    /// The entry of the log, a record.
    pub entry: Arc<Entry>,
    /// How often the record was read before.
    pub pass: u64,
}

/// What a window takes of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Where it begins.
    pub begin: SequenceNumber,
    /// Where it ends.
    pub durable: DurablePosition,
    /// The inputs that are open there.
    pub open: OpenInputs,
}

/// Examples that are shuffled together.
#[derive(Clone, Debug)]
pub struct Window {
    /// The sampler before the window, with the window's number.
    pub before: SamplerState,
    /// What was taken of the log.
    pub view: View,
    /// Examples as they were drawn: languages mixed, a language's records in the log's order. Fewer than asked for only
    /// in the last window of all.
    pub examples: Vec<Example>,
}

impl Window {
    /// The oldest entry that was read. To form the window again needs it, and what comes after it.
    #[must_use]
    pub fn oldest(&self) -> SequenceNumber {
        let read = self.examples.iter().map(|example| example.entry.sequence);
        read.min().unwrap_or(self.view.durable.end())
    }
}

/// What came of trying to form a window.
#[derive(Clone, Debug)]
pub enum Draw {
    /// A window.
    Window(Window),
    /// The log does not reach far enough: nothing has changed, try again when it has grown.
    Short(Short),
    /// Every language has dropped out.
    Exhausted,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The language whose records are missing.
    pub language: String,
    /// Where they are looked for.
    pub from: SequenceNumber,
}

/// Draws windows from the log.
#[derive(Clone, Debug)]
pub struct Sampler {
    draws: Philox,
    options: SamplerOptions,
    state: SamplerState,
    short: Option<Short>,
}

impl Sampler {
    /// A sampler that continues from `state`.
    #[must_use]
    pub fn new(seed: u64, options: SamplerOptions, state: SamplerState) -> Self {
        Self { draws: Philox::new(seed, "sampler", &[]), options, state, short: None }
    }

    /// Draws the next windows by these options.
    pub(crate) fn set_options(&mut self, options: SamplerOptions) {
        let is_same = |with: &SamplerOptions| {
            let SamplerOptions { shuffle_examples, alpha, max_passes, when_short, .. } = with;
            (*shuffle_examples, *max_passes, *when_short)
                == (options.shuffle_examples, options.max_passes, options.when_short)
                && alpha.to_bits() == options.alpha.to_bits()
        };
        if !is_same(&self.options) {
            // Who was short may not be drawn at all now.
            self.short = None;
        }
        self.options = options;
    }

    /// Where sampling stands: before the next window.
    #[must_use]
    pub fn state(&self) -> &SamplerState {
        &self.state
    }

    /// Draws the next window from the records below `durable`. Meanwhile retention must not remove anything.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn window(&mut self, records: &dyn Records, durable: DurablePosition) -> Result<Draw, TrainerError> {
        let cursors = records.cursors(durable)?;
        let waited_for = |input: &&Input| input.finite && !cursors.contains_key(input.source.as_str());
        let inputs = self.options.inputs.get();
        if let Some(input) = inputs.iter().find(waited_for) {
            let from = SequenceNumber::default();
            return Ok(Draw::Short(Short { language: input.language.clone(), from }));
        }
        let open = open_inputs(&inputs, |source| cursors.get(source).is_none_or(|cursor| !cursor.ended));
        self.form(records, View { begin: records.begin(), durable, open }, &cursors)
    }

    /// Draws the next window as it was formed before, from the records in `begin..durable` with `open` inputs. `None`: it is
    /// not known which were open; those of today that had an entry in the log are taken.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn window_again(
        &mut self,
        records: &dyn Records,
        begin: SequenceNumber,
        durable: DurablePosition,
        open: Option<&OpenInputs>,
    ) -> Result<Draw, TrainerError> {
        let cursors = records.cursors(durable)?;
        let open = open.cloned().unwrap_or_else(|| {
            open_inputs(&self.options.inputs.get(), |source| cursors.get(source).is_some_and(|cursor| !cursor.ended))
        });
        self.form(records, View { begin, durable, open }, &cursors)
    }

    fn form(&mut self, records: &dyn Records, view: View, cursors: &Cursors) -> Result<Draw, TrainerError> {
        let languages = self.languages(cursors, &view.open);
        if let Some(short) = self.still_short(&languages, records, view.durable)? {
            return Ok(Draw::Short(short));
        }
        Ok(match Drawing::new(self, records, &view, languages).window()? {
            Ok((examples, _)) if examples.is_empty() => Draw::Exhausted,
            Ok((examples, state)) => {
                let before = std::mem::replace(&mut self.state, state);
                self.short = None;
                Draw::Window(Window { before, view, examples })
            }
            Err(short) => {
                self.short = Some(short.clone());
                Draw::Short(short)
            }
        })
    }

    /// The languages in the log and of the open inputs, in order.
    fn languages(&self, cursors: &Cursors, open: &OpenInputs) -> Vec<Language> {
        let mut languages: BTreeMap<Arc<str>, Language> = BTreeMap::new();
        for cursor in cursors.values().filter(|cursor| !cursor.source.starts_with(EVALUATION_PREFIX)) {
            let language = language_of(&mut languages, &cursor.language);
            language.characters += cursor.characters_available;
        }
        for language in open.values() {
            language_of(&mut languages, language).open = true;
        }
        for language in languages.values_mut().filter(|language| language.characters > 0) {
            language.weight = libm::pow(language.characters as f64, self.options.alpha);
        }
        languages.into_values().collect()
    }

    /// Whether the language that was short at the last attempt is short still. It spares drawing most of a window
    /// again and again; the window that is formed in the end is the same.
    fn still_short(
        &self,
        languages: &[Language],
        records: &dyn Records,
        durable: DurablePosition,
    ) -> Result<Option<Short>, TrainerError> {
        let Some(short) = &self.short else { return Ok(None) };
        if !languages.iter().any(|language| *language.name == *short.language && language.open) {
            return Ok(None);
        }
        let arrived = records.next_record(&short.language, false, short.from, durable)?.is_some();
        Ok(if arrived { None } else { Some(short.clone()) })
    }
}

/// The inputs whose source `is_open`.
fn open_inputs(inputs: &[Input], is_open: impl Fn(&str) -> bool) -> OpenInputs {
    let inputs = inputs.iter().filter(|input| is_open(&input.source));
    inputs.map(|input| (input.source.clone(), input.language.clone())).collect()
}

/// The state of every source in the log.
type Cursors = BTreeMap<Arc<str>, SourceCursor>;

/// A language as the log shows it.
#[derive(Clone, Debug)]
struct Language {
    name: Arc<str>,
    /// n_k.
    characters: u64,
    /// n_k^α; 0 if there are no characters, whatever α.
    weight: f64,
    /// Whether more records may come.
    open: bool,
}

fn language_of<'a>(languages: &'a mut BTreeMap<Arc<str>, Language>, name: &str) -> &'a mut Language {
    let name: Arc<str> = name.into();
    languages.entry(name.clone()).or_insert(Language { name, characters: 0, weight: 0.0, open: false })
}

enum Taken {
    Example(Example),
    Short(Short),
    Nothing,
}

/// A window being drawn; its changes of state take effect when the window is complete.
struct Drawing<'a> {
    sampler: &'a Sampler,
    records: &'a dyn Records,
    view: &'a View,
    languages: Vec<Language>,
    state: SamplerState,
}

impl<'a> Drawing<'a> {
    fn new(sampler: &'a Sampler, records: &'a dyn Records, view: &'a View, languages: Vec<Language>) -> Self {
        let mut state = sampler.state.clone();
        for language in languages.iter().filter(|language| language.open) {
            if let Some(cursor) = state.cursors.get_mut(&*language.name) {
                // It may have dropped out before it was given another input.
                cursor.finished = false;
            }
        }
        Self { sampler, records, view, languages, state }
    }

    /// The window's examples, and the state after it.
    fn window(mut self) -> Result<Result<(Vec<Example>, SamplerState), Short>, TrainerError> {
        let count = self.sampler.options.shuffle_examples;
        let mut examples = Vec::with_capacity(count);
        while examples.len() < count {
            match self.example(examples.len() as u64)? {
                Taken::Example(example) => examples.push(example),
                Taken::Short(short) => return Ok(Err(short)),
                Taken::Nothing => match self.languages.iter().find(|language| language.open) {
                    // Open, yet never drawn: nothing has arrived so far.
                    Some(open) => {
                        return Ok(Err(Short { language: open.name.to_string(), from: self.view.durable.end() }));
                    }
                    None => break,
                },
            }
        }
        self.state.window += 1;
        Ok(Ok((examples, self.state)))
    }

    /// Draws example `index` of the window.
    fn example(&mut self, index: u64) -> Result<Taken, TrainerError> {
        for attempt in 0.. {
            let Some(language) = self.choose(index, attempt) else { break };
            match self.take(&language)? {
                // The language has dropped out: draw among the others.
                Taken::Nothing => {}
                taken => return Ok(taken),
            }
        }
        Ok(Taken::Nothing)
    }

    /// Draws a language in proportion to n_k^α; `None` if all have dropped out.
    fn choose(&self, index: u64, attempt: u64) -> Option<Language> {
        let takes_part = |language: &&Language| {
            let finished = self.state.cursors.get(&*language.name).is_some_and(|cursor| cursor.finished);
            language.weight > 0.0 && !finished
        };
        let total: f64 = self.languages.iter().filter(takes_part).map(|language| language.weight).sum();
        let mut left = self.sampler.draws.uniform(self.state.window, index | attempt << 48) * total;
        let mut chosen = None;
        for language in self.languages.iter().filter(takes_part) {
            chosen = Some(language);
            left -= language.weight;
            if left < 0.0 {
                break;
            }
        }
        chosen.cloned()
    }

    /// Takes a language's next record; `Nothing`: the language has dropped out.
    fn take(&mut self, language: &Language) -> Result<Taken, TrainerError> {
        let mut cursor = self.state.cursors.get(&*language.name).copied().unwrap_or_default();
        let taken = self.advance(language, &mut cursor)?;
        self.state.cursors.insert(language.name.to_string(), cursor);
        Ok(taken)
    }

    fn advance(&self, language: &Language, cursor: &mut LanguageCursor) -> Result<Taken, TrainerError> {
        if let Some(entry) = self.next_record(language, cursor.next)? {
            cursor.next = entry.sequence.next();
            return Ok(Taken::Example(Example { entry, pass: cursor.pass }));
        }
        if language.open {
            return self.advance_short(language, cursor);
        }
        let max_passes = self.sampler.options.max_passes;
        let once_more = max_passes == 0 || cursor.pass + 1 < max_passes;
        if once_more && let Some(entry) = self.next_record(language, self.view.begin)? {
            cursor.pass += 1;
            cursor.next = entry.sequence.next();
            return Ok(Taken::Example(Example { entry, pass: cursor.pass }));
        }
        cursor.finished = true;
        Ok(Taken::Nothing)
    }

    /// The input is open, but nothing new is there.
    fn advance_short(&self, language: &Language, cursor: &mut LanguageCursor) -> Result<Taken, TrainerError> {
        let short = Short { language: language.name.to_string(), from: cursor.next };
        if self.sampler.options.when_short == WhenShort::Wait {
            return Ok(Taken::Short(short));
        }
        let mut replay = cursor.replay.unwrap_or_default();
        let mut entry = self.next_record(language, replay.next)?;
        if entry.is_none() {
            replay = Replay { next: self.view.begin, pass: replay.pass + 1 };
            entry = self.next_record(language, replay.next)?;
        }
        let Some(entry) = entry else { return Ok(Taken::Short(short)) };
        replay.next = entry.sequence.next();
        cursor.replay = Some(replay);
        Ok(Taken::Example(Example { entry, pass: cursor.pass + replay.pass + 1 }))
    }

    fn next_record(&self, language: &Language, from: SequenceNumber) -> Result<Option<Arc<Entry>>, TrainerError> {
        Ok(self.records.next_record(&language.name, false, from.max(self.view.begin), self.view.durable)?)
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
