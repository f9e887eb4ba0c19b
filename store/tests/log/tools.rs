//! New logs from others: copying and merging.

use crate::memory_disk::MemoryDisk;
use crate::sample::{
    DIR, append_blocks, block, check_same, durable, entry, identity, open_as, options, sealed, segments, textless,
    unsealed,
};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use store::log::{CopyOptions, CopyReport, LEFT_OUT, MergeReport, Need, Pass, Retention, copy, merge};
use store::{
    Entry, Identity, LogOptions, LogReader, LogWriter, Payload, Precision, Record, SequenceNumber, StoreError,
};
use tempfile::TempDir;

/// A folder with logs in it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a log of a disk in memory there.
    pub(crate) fn put(&self, name: &str, disk: &MemoryDisk) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        for (path, bytes) in disk.files(Path::new(DIR)) {
            if path.parent() == Some(Path::new(DIR)) {
                fs::write(dir.join(path.file_name().unwrap()), bytes).unwrap();
            }
        }
        dir
    }

    fn copy(&self, source: &Path, options: &CopyOptions) -> Result<CopyReport, StoreError> {
        copy(source, &self.path("out"), options, &Pass::default())
    }

    fn merge(&self, sources: &[&PathBuf]) -> Result<MergeReport, StoreError> {
        let sources: Vec<PathBuf> = sources.iter().copied().cloned().collect();
        merge(&self.path("out"), &sources, 1 << 20, &Pass::default())
    }

    /// Everything in the new log, which must be intact.
    fn out(&self) -> Vec<Entry> {
        entries(&self.path("out"))
    }

    /// Nothing is left of what failed.
    fn check_nothing_left(&self) {
        assert!(!self.path("out").exists() && !self.path("out.partial").exists());
    }
}

pub(crate) fn entries(dir: &Path) -> Vec<Entry> {
    store::verify(dir).unwrap();
    let reader = LogReader::open(dir).unwrap();
    let sequences = reader.begin().0..reader.durable().end().0;
    sequences.map(|sequence| (*reader.entry(SequenceNumber(sequence)).unwrap()).clone()).collect()
}

fn cursors(dir: &Path, up_to: u64) -> Vec<store::SourceCursor> {
    LogReader::open(dir).unwrap().cursors(durable(up_to)).unwrap().into_values().collect()
}

fn all_cursors(dir: &Path) -> Vec<store::SourceCursor> {
    cursors(dir, u64::MAX)
}

/// Entries with numbers from `first` on.
fn renumbered(entries: Vec<Entry>, first: u64) -> Vec<Entry> {
    (first..).zip(entries).map(|(number, entry)| Entry { sequence: SequenceNumber(number), ..entry }).collect()
}

fn record(entry: &Entry) -> Option<&Record> {
    match &entry.payload {
        Payload::Record(record) => Some(record),
        Payload::Skip(_) | Payload::End => None,
    }
}

fn only<const N: usize>(names: [&str; N]) -> std::collections::BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn identity_of(dir: &Path) -> Identity {
    LogReader::open(dir).unwrap().identity().clone()
}

#[test]
fn a_copy_of_everything_is_the_same_log() {
    for disk in [sealed(&[5, 9, 30]), unsealed(&[5, 9, 30])] {
        let folder = Folder::new();
        let source = folder.put("log", &disk);
        let report = folder.copy(&source, &CopyOptions::default()).unwrap();
        assert_eq!(folder.out(), block(0..30));
        assert_eq!((report.read, report.dropped_records, report.dropped_copies, report.lost_entries), (30, 0, 0, 0));
        let (new, old) = (store::stat(&folder.path("out")).unwrap(), store::stat(&source).unwrap());
        assert_eq!((new.blocks, new.segments, new.label_bytes), (old.blocks, 1, old.label_bytes));
        let written = &report.written;
        assert_eq!((written.records, written.copies, written.skips), (old.records, old.copies, old.skips));
        assert_eq!((written.entries, written.cursors, written.masked_positions), (30, 0, old.masked_positions));
        assert_eq!((written.bytes, written.segments), (new.bytes, new.segments));
        assert_eq!(identity_of(&folder.path("out")), identity());
    }
}

#[test]
fn copies_of_other_teachers_are_left_out() {
    for (name, index) in [("en", 0), ("de", 1), ("fi", 2)] {
        let folder = Folder::new();
        let source = folder.put("log", &sealed(&[5, 9, 30]));
        let options = CopyOptions { teachers: only([name]), ..CopyOptions::default() };
        let report = folder.copy(&source, &options).unwrap();
        let out = folder.out();
        let mut expected = Vec::new();
        for mut entry in block(0..30) {
            if let Payload::Record(record) = &mut entry.payload {
                record.copies.retain(|copy| copy.teacher == index);
                record.copies.iter_mut().for_each(|copy| copy.teacher = 0);
                if record.copies.is_empty() {
                    continue;
                }
            }
            expected.push(entry);
        }
        assert_eq!(out[..expected.len()], renumbered(expected, 0));
        assert_eq!(report.dropped_records, 26 - report.written.records);
        assert_eq!(identity_of(&folder.path("out")).teachers, [identity().teachers[usize::from(index)].clone()]);
        assert_eq!(all_cursors(&folder.path("out")), all_cursors(&source), "where ingestion goes on");
    }
}

#[test]
fn records_of_other_languages_are_left_out_and_cursors_are_not() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    let options = CopyOptions { languages: only(["en"]), ..CopyOptions::default() };
    let report = folder.copy(&source, &options).unwrap();
    let out = folder.out();
    assert!(out.iter().filter_map(record).all(|record| &*record.language == "en"));
    let all = block(0..30);
    let english = all.iter().filter_map(record).filter(|record| &*record.language == "en").count() as u64;
    assert_eq!((report.written.records, report.read), (english, 30));
    // The last entry of `de`, 28, is a record: its cursor is kept by a skip.
    let Payload::Skip(skip) = &out.last().unwrap().payload else { panic!("the cursor of `de` is lost") };
    assert_eq!((&*skip.reason, &*skip.document), (LEFT_OUT, "text/de.txt@5000"));
    assert_eq!((report.written.cursors, out.last().unwrap().cursor.clone()), (1, entry(28).cursor));
    assert_eq!(all_cursors(&folder.path("out")), all_cursors(&source));
}

#[test]
fn a_part_is_copied_with_the_state_at_its_end() {
    for (from, to) in [(0, 12), (7, 20), (9, 30), (29, 1000)] {
        let folder = Folder::new();
        let source = folder.put("log", &sealed(&[5, 9, 30]));
        let options =
            CopyOptions { from: SequenceNumber(from), to: Some(SequenceNumber(to)), ..CopyOptions::default() };
        let report = folder.copy(&source, &options).unwrap();
        let end = to.min(30);
        assert_eq!(report.read, end - from);
        let out = folder.out();
        assert_eq!(out[..(end - from) as usize], renumbered(block(from..end), 0));
        assert_eq!(out.len() as u64, end - from + report.written.cursors);
        assert_eq!(all_cursors(&folder.path("out")), cursors(&source, end), "{from}..{to}");
    }
}

/// Few records are kept of each block: they are joined into blocks of about the old size.
#[test]
fn small_blocks_are_joined() {
    let ends: Vec<u64> = (1..=30).map(|number| number * 4).collect();
    let folder = Folder::new();
    let source = folder.put("log", &unsealed(&ends));
    let options = CopyOptions { languages: only(["de"]), ..CopyOptions::default() };
    folder.copy(&source, &options).unwrap();
    let blocks = store::stat(&folder.path("out")).unwrap().blocks;
    assert!((8..=20).contains(&blocks), "{blocks} blocks");
}

#[test]
fn segments_are_as_large_as_wanted() {
    let folder = Folder::new();
    let source = folder.put("log", &unsealed(&[5, 9, 13, 30]));
    let report = folder.copy(&source, &CopyOptions { segment_bytes: 1, ..CopyOptions::default() }).unwrap();
    assert_eq!(report.written.segments, 4);
    assert_eq!(folder.out(), block(0..30));
}

/// The copy in another precision says so in its settings, and a copy of that is the very same.
#[test]
fn another_precision() {
    let folder = Folder::new();
    let mut identity = identity();
    identity.settings.insert("store.precision".to_owned(), "exact".to_owned());
    let disk = MemoryDisk::default();
    let (mut log, _) = open_as(&disk, &identity, &options(1 << 20)).unwrap();
    append_blocks(&mut log, &[5, 30]);
    log.seal().unwrap();
    let source = folder.put("log", &disk);
    let compact = folder.path("compact");
    let to = |precision| CopyOptions { precision: Some(precision), ..CopyOptions::default() };
    copy(&source, &compact, &to(Precision::Compact), &Pass::default()).unwrap();
    let stat = store::stat(&compact).unwrap();
    assert_eq!(stat.precisions.iter().map(|range| range.precision).collect::<Vec<_>>(), [Precision::Compact]);
    assert_eq!(identity_of(&compact).settings["store.precision"], "compact");
    let once = entries(&compact);
    once.iter().zip(block(0..30)).for_each(|(read, entry)| check_same(read, &entry, Precision::Compact));

    let (twice, exact) = (folder.path("twice"), folder.path("exact"));
    copy(&compact, &twice, &CopyOptions::default(), &Pass::default()).unwrap();
    copy(&compact, &exact, &to(Precision::Exact), &Pass::default()).unwrap();
    assert_eq!(entries(&twice), once);
    assert_eq!(entries(&exact), once);
    assert_eq!(identity_of(&exact), identity);
}

/// Weights of a sample are not log-probabilities of descending tokens, which compact precision is made for.
#[test]
fn sampled_tails_stay_exact() {
    let folder = Folder::new();
    let mut identity = identity();
    identity.settings.insert(store::TAIL_SAMPLES_KEY.to_owned(), "2".to_owned());
    assert_eq!(identity.tail_samples(), 2);
    let disk = MemoryDisk::default();
    let (mut log, _) = open_as(&disk, &identity, &options(1 << 20)).unwrap();
    append_blocks(&mut log, &[5]);
    log.seal().unwrap();
    let source = folder.put("log", &disk);
    let compact = CopyOptions { precision: Some(Precision::Compact), ..CopyOptions::default() };
    let error = folder.copy(&source, &compact).unwrap_err().to_string();
    assert!(error.contains("store.tail_samples"), "{error}");
    folder.check_nothing_left();
    folder.copy(&source, &CopyOptions::default()).unwrap();
    assert_eq!(identity_of(&folder.path("out")), identity);
}

/// What is compact already is not rounded again, however its blocks are cut: with labels of every steepness.
#[test]
fn a_copy_of_a_compact_log_is_no_further_from_the_teacher() {
    for steepness in [0.3, 1.0, 3.0, 6.0, 9.0] {
        let folder = Folder::new();
        let mut entries = block(0..60);
        for (number, entry) in (0_u16..).zip(&mut entries) {
            let Payload::Record(record) = &mut entry.payload else { continue };
            let labels = record.copies.iter_mut().filter_map(|copy| copy.label.as_mut());
            for (label, odd) in labels.zip(1_u16..) {
                let noise = |at: usize| f64::from((number * 37 + odd * 11 + at as u16 * 101) % 97) / 97.0;
                for position in 0..2 {
                    let values = [0, 1, 2].map(|rank| -steepness * (rank as f64 + 0.3 * noise(position * 3 + rank)));
                    // The tail is what is left of 1, and as likely as the last of the top-k.
                    let sum = (values.iter().map(|value| value.exp()).sum::<f64>() + values[2].exp()).ln();
                    label.log_sum_exp[position] = (7.0 + sum) as f32;
                    values.iter().enumerate().for_each(|(rank, value)| {
                        label.top_logits[position * 3 + rank] = (7.0 + value) as f32;
                    });
                }
                label.gold_logits = vec![label.top_logits[0], label.top_logits[5] - 0.5];
            }
        }
        let disk = MemoryDisk::default();
        let compact = LogOptions { precision: Precision::Compact, ..options(1 << 20) };
        let (mut log, _) = open_as(&disk, &identity(), &compact).unwrap();
        entries.chunks(6).for_each(|block| log.append(block).unwrap());
        log.seal().unwrap();
        let source = folder.put("log", &disk);
        let once = self::entries(&source);
        folder.copy(&source, &CopyOptions::default()).unwrap();
        assert_eq!(folder.out(), once, "steepness {steepness}");
        let english = CopyOptions { languages: only(["en"]), ..CopyOptions::default() };
        copy(&source, &folder.path("english"), &english, &Pass::default()).unwrap();
        let kept = once.into_iter().filter(|entry| record(entry).is_none_or(|record| &*record.language == "en"));
        let expected = renumbered(kept.collect(), 0);
        assert_eq!(self::entries(&folder.path("english"))[..expected.len()], expected, "steepness {steepness}");
    }
}

#[test]
fn what_cannot_be_copied_is_refused() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    let refused = |options: &CopyOptions, words: &str| {
        let failure = folder.copy(&source, options).unwrap_err();
        assert!(matches!(failure, StoreError::Selection { .. }), "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
        folder.check_nothing_left();
    };
    let defaults = CopyOptions::default;
    refused(&CopyOptions { teachers: only(["en", "xx"]), ..defaults() }, "no teacher `xx`, but en, de, fi");
    refused(&CopyOptions { languages: only(["xx"]), ..defaults() }, "language `xx`, but of de, en");
    let (from, to) = (SequenceNumber(7), Some(SequenceNumber(7)));
    refused(&CopyOptions { from, to, ..defaults() }, "from 7 on and below 7");
    assert!(matches!(folder.copy(&folder.path("nothing"), &defaults()), Err(StoreError::NoLog { .. })));
    folder.check_nothing_left();
}

#[test]
fn a_folder_in_which_something_is_is_refused() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5]));
    let unusable = |out: PathBuf, words: &str| {
        let failure = copy(&source, &out, &CopyOptions::default(), &Pass::default()).unwrap_err();
        assert!(matches!(failure, StoreError::OutputUnusable { .. }), "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    };
    unusable(source.clone(), "not empty");
    fs::write(folder.path("file"), "").unwrap();
    unusable(folder.path("file"), "no folder");
    unusable(folder.path(".."), "names no folder");
    fs::create_dir_all(folder.path("out.partial/torn")).unwrap();
    unusable(folder.path("out"), "did not finish");
    fs::remove_dir(folder.path("out.partial/torn")).unwrap();
    fs::create_dir(folder.path("out")).unwrap();
    folder.copy(&source, &CopyOptions::default()).unwrap();
    assert_eq!(folder.out(), block(0..5));
}

/// Flips a bit in the payload of the last block of a segment that is sealed.
pub(crate) fn damage_block(dir: &Path, segment: usize) -> PathBuf {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    paths.sort();
    let path = paths.remove(segment);
    let mut bytes = fs::read(&path).unwrap();
    let footer = bytes.windows(4).rposition(|window| window == b"MDft").unwrap();
    bytes[footer - 9] ^= 4;
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn damage_stops_a_copy_and_leaves_nothing() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    damage_block(&source, 1);
    let failure = folder.copy(&source, &CopyOptions::default()).unwrap_err();
    assert!(failure.is_corruption(), "{failure}");
    folder.check_nothing_left();
    let failure = folder.merge(&[&source, &source]).unwrap_err();
    assert!(failure.is_corruption(), "{failure}");
    folder.check_nothing_left();
}

#[test]
fn a_copy_past_damage_says_what_is_lost() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    let path = damage_block(&source, 1);
    let report = folder.copy(&source, &CopyOptions { skip_corrupt: true, ..CopyOptions::default() }).unwrap();
    let mut expected = block(0..5);
    expected.extend(block(9..30));
    assert_eq!(folder.out(), renumbered(expected, 0));
    assert_eq!((report.read, report.lost_entries, report.losses.len()), (26, 4, 1));
    let loss = &report.losses[0];
    assert_eq!((&loss.segment, loss.first, loss.end), (&path, SequenceNumber(5), Some(SequenceNumber(9))));
    assert_eq!(all_cursors(&folder.path("out")), cursors(&folder.path("out"), 26));
}

#[test]
fn texts_are_kept_unless_they_are_not_wanted() {
    let folder = Folder::new();
    let source = folder.put("log", &sealed(&[5, 9, 30]));
    let options = CopyOptions { without_text: true, ..CopyOptions::default() };
    let report = folder.copy(&source, &options).unwrap();
    let without: Vec<_> = block(0..30).into_iter().map(textless).collect();
    assert_eq!(folder.out(), without);
    let all = block(0..30);
    let texts = all.iter().filter_map(record).filter(|record| record.text.is_some()).count() as u64;
    assert_eq!(report.dropped_texts, texts);
    let stat = store::stat(&folder.path("out")).unwrap();
    assert_eq!((stat.text_bytes, stat.languages["en"].texts), (0, 0));

    // What only one of them has the text of is the same record; as the first has it, it is written.
    let both = [folder.path("first"), folder.path("second")];
    let report = merge(&both[0], &[source.clone(), folder.path("out")], 1 << 20, &Pass::default()).unwrap();
    assert_eq!(report.logs[1].duplicates, 30);
    assert_eq!(entries(&both[0]), all);
    merge(&both[1], &[folder.path("out"), source], 1 << 20, &Pass::default()).unwrap();
    assert_eq!(entries(&both[1]), without);
}

/// A copy sees what is durable, and no more; the writer is not disturbed.
#[test]
fn a_live_log_is_copied_up_to_where_it_is_durable() {
    for skip_corrupt in [false, true] {
        let folder = Folder::new();
        let source = folder.path("log");
        let (mut log, _) = LogWriter::open(&source, &identity(), &options(1 << 20), &Registry::new()).unwrap();
        append_blocks(&mut log, &[5, 9]);
        log.append(&block(9..12)).unwrap();
        folder.copy(&source, &CopyOptions { skip_corrupt, ..CopyOptions::default() }).unwrap();
        assert_eq!(folder.out(), block(0..9));
        append_blocks(&mut log, &[15]);
        log.seal().unwrap();
        assert_eq!(entries(&source), block(0..15));
    }
}

/// A log of the same entries, but with the sources, documents and languages of another corpus and with another teacher table.
fn other_log(ends: &[u64], teachers: [usize; 2]) -> MemoryDisk {
    let mut identity = identity();
    identity.teachers = teachers.map(|teacher| identity.teachers[teacher].clone()).to_vec();
    let disk = MemoryDisk::default();
    let (mut log, _) = open_as(&disk, &identity, &options(1 << 20)).unwrap();
    for end in ends {
        log.append(&(log.next().0..*end).map(other_entry).collect::<Vec<_>>()).unwrap();
    }
    log.seal().unwrap();
    disk
}

fn other_entry(sequence: u64) -> Entry {
    let mut entry = entry(sequence);
    entry.cursor.source = format!("other {}", entry.cursor.source).into();
    if let Payload::Record(record) = &mut entry.payload {
        record.source = entry.cursor.source.clone();
        record.copies.retain(|copy| copy.teacher != 1);
        record.copies.iter_mut().for_each(|copy| copy.teacher = u16::from(copy.teacher == 0));
        record.copies.sort_by_key(|copy| copy.teacher);
    }
    entry
}

#[test]
fn logs_of_different_sources_are_joined() {
    let folder = Folder::new();
    let first = folder.put("first", &sealed(&[5, 9, 30]));
    // There, teacher 0 is `fi`, and 1 is `en`.
    let second = folder.put("second", &other_log(&[8, 20], [2, 0]));
    let report = folder.merge(&[&first, &second]).unwrap();
    let mut expected = block(0..30);
    for mut entry in (0..20).map(other_entry) {
        if let Payload::Record(record) = &mut entry.payload {
            record.copies.iter_mut().for_each(|copy| copy.teacher = [2, 0][usize::from(copy.teacher)]);
            record.copies.sort_by_key(|copy| copy.teacher);
        }
        expected.push(entry);
    }
    assert_eq!(folder.out(), renumbered(expected, 0));
    assert_eq!(identity_of(&folder.path("out")), identity());
    assert_eq!(report.logs.iter().map(|log| (log.read, log.duplicates)).collect::<Vec<_>>(), [(30, 0), (20, 0)]);
    let mut both: BTreeMap<_, _> = BTreeMap::new();
    for log in [&first, &second] {
        both.extend(all_cursors(log).into_iter().map(|cursor| (cursor.source.clone(), cursor)));
    }
    assert_eq!(all_cursors(&folder.path("out")), both.into_values().collect::<Vec<_>>());
}

/// Parts of one log that overlap are put together again.
#[test]
fn what_several_logs_have_is_written_once() {
    let folder = Folder::new();
    let whole = folder.put("log", &sealed(&[5, 9, 30]));
    let part = |name: &str, from, to| {
        let options =
            CopyOptions { from: SequenceNumber(from), to: Some(SequenceNumber(to)), ..CopyOptions::default() };
        copy(&whole, &folder.path(name), &options, &Pass::default()).unwrap();
        folder.path(name)
    };
    let parts = [part("a", 0, 14), part("b", 8, 25), part("c", 10, 12), part("d", 20, 30)];
    let report = folder.merge(&[&parts[0], &parts[1], &parts[2], &parts[3]]).unwrap();
    assert_eq!(folder.out(), block(0..30));
    assert_eq!(report.logs.iter().map(|log| log.duplicates).collect::<Vec<_>>(), [0, 6, 2, 5]);
    assert_eq!(all_cursors(&folder.path("out")), all_cursors(&whole));
}

#[test]
fn logs_that_do_not_fit_are_not_merged() {
    let folder = Folder::new();
    let first = folder.put("first", &sealed(&[5, 9, 30]));
    let refused = |name: &str, disk: &MemoryDisk, words: &[&str]| {
        let second = folder.put(name, disk);
        let failure = folder.merge(&[&first, &second]).unwrap_err();
        assert!(matches!(failure, StoreError::Unmergeable { .. }), "{failure}");
        for word in words.iter().chain(&["first", name]) {
            assert!(failure.to_string().contains(word), "{failure}");
        }
        folder.check_nothing_left();
    };
    let with = |identity: &Identity, entries: &[Entry]| {
        let disk = MemoryDisk::default();
        let (mut log, _) = open_as(&disk, identity, &options(1 << 20)).unwrap();
        log.append(entries).unwrap();
        log.seal().unwrap();
        disk
    };
    let mut other = identity();
    other.settings.insert("run.seed".to_owned(), "1".to_owned());
    other.settings.remove("store.top_k");
    refused("settings", &with(&other, &block(0..3)), &["run.seed: 0 and 1", "store.top_k: 3 and unset"]);
    let mut other = identity();
    other.teachers[1].weights_fingerprint = "others".to_owned();
    refused("weights", &with(&other, &block(0..3)), &["teacher `de`: weights `weights of de` and `others`"]);
    let mut changed = block(0..3);
    let Payload::Record(record) = &mut changed[2].payload else { panic!("entry 2 is a record") };
    record.copies[0].token_ids[0] += 1;
    refused("copies", &with(&identity(), &changed), &["entry 2 of the first and entry 2 of the second"]);
    assert!(segments(&sealed(&[5])).len() == 1);
}

/// What retention removed is not there to be copied; the states of the sources are.
#[test]
fn a_log_that_begins_later_is_copied_from_there() {
    let folder = Folder::new();
    let disk = sealed(&[5, 9, 30]);
    let (mut log, _) = open_as(&disk, &identity(), &options(1)).unwrap();
    let (need, held_out) = (Need::default(), Path::new("/state/holdout").to_owned());
    need.set(SequenceNumber(9), "");
    log.retain(&Retention { bytes: 1, age: None, held_out }, Some(&need)).unwrap();
    log.seal().unwrap();
    let source = folder.put("log", &disk);
    let stat = store::stat(&source).unwrap();
    assert_eq!((stat.begin, stat.precisions[0].from), (SequenceNumber(9), SequenceNumber(9)));
    assert_eq!(store::verify(&source).unwrap().entries, 21);
    for skip_corrupt in [false, true] {
        let options = CopyOptions { skip_corrupt, to: Some(SequenceNumber(20)), ..CopyOptions::default() };
        let report = folder.copy(&source, &options).unwrap();
        assert_eq!((report.read, report.lost_entries), (11, 0));
        assert_eq!(folder.out()[..11], renumbered(block(9..20), 0));
        assert_eq!(all_cursors(&folder.path("out")), cursors(&source, 20));
        fs::remove_dir_all(folder.path("out")).unwrap();
    }
}
