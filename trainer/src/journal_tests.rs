#![allow(clippy::unwrap_used)]

use super::*;

fn window(number: u64, durable: u64) -> JournalEntry {
    let mut state = SamplerState { window: number, ..SamplerState::default() };
    state.cursors.insert("en".to_owned(), Default::default());
    let open = (number > 0).then(|| OpenInputs::from([("web".to_owned(), "en".to_owned())]));
    let (begin, oldest) = (SequenceNumber(number), SequenceNumber(durable / 2));
    let durable = DurablePosition::from_log(durable);
    JournalEntry::Window(WindowEntry { window: number, begin, durable, oldest, open, state })
}

fn rollback() -> JournalEntry {
    JournalEntry::Rollback(Rollback { from_step: 9, to_step: 5, left_out: vec![SequenceNumber(17)] })
}

/// A journal of three windows and an event, and its bytes.
fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    for entry in [window(0, 10), window(1, 30), rollback(), window(2, 20)] {
        journal.append(entry).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    (folder, path, bytes)
}

#[test]
fn entries_survive_reopening() {
    let (_folder, path, bytes) = written();
    let mut journal = Journal::open(&path).unwrap();
    assert_eq!(journal.window(1), Some(DurablePosition::from_log(30)));
    assert_eq!((journal.window(3), journal.last_window()), (None, Some(2)));
    assert_eq!(journal.open_inputs(1).unwrap()["web"], "en");
    assert_eq!((journal.begin(2), journal.begin(3)), (Some(SequenceNumber(2)), None));
    assert_eq!(journal.oldest_from(0), Some((0, SequenceNumber(5))));
    assert_eq!(journal.oldest_from(1), Some((2, SequenceNumber(10))));
    assert_eq!(journal.oldest_from(3), None);
    assert_eq!(journal.last_state().unwrap().window, 2);
    assert_eq!(journal.open_inputs(0), None, "a line of an older version");
    assert_eq!(journal.highest_durable(), DurablePosition::from_log(30));
    assert_eq!(journal.events(), [rollback()]);
    // Written once only, and never with another position.
    journal.append(window(2, 20)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert!(journal.append(window(2, 21)).unwrap_err().to_string().contains("window 2 saw the log up to 20"));
    journal.append(window(3, 50)).unwrap();
    assert_eq!(Journal::open(&path).unwrap().last_window(), Some(3));
}

#[test]
fn who_looks_at_it_changes_nothing() {
    let (_folder, path, bytes) = written();
    let torn = [&bytes[..], b"{\"event\":"].concat();
    fs::write(&path, &torn).unwrap();
    let mut journal = Journal::view(&path, None).unwrap();
    assert_eq!((journal.last_window(), journal.events()), (Some(2), &[rollback()][..]));
    assert!(journal.append(window(3, 50)).unwrap_err().to_string().contains("only looked at"));
    // As it was before the return; all windows are known.
    let before = Journal::view(&path, Some(0)).unwrap();
    assert_eq!((before.last_window(), before.events()), (Some(2), &[][..]));
    assert_eq!(Journal::view(&path, Some(1)).unwrap().events(), [rollback()]);
    assert_eq!(fs::read(&path).unwrap(), torn);
    assert!(!path.with_extension("torn").exists());
}

#[test]
fn every_line_is_json() {
    let (_folder, _path, bytes) = written();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["event"], "window");
    assert_eq!(lines[1]["durable"], 30);
    assert_eq!(lines[0]["state"]["cursors"]["en"]["next"], 0);
    assert_eq!(lines[2]["left_out"][0], 17);
}

#[test]
fn a_torn_last_line_is_cut_wherever_it_was_torn() {
    let (_folder, path, bytes) = written();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for end in last..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!((journal.last_window(), journal.cut_bytes()), (Some(1), (end - last) as u64));
        assert_eq!(fs::read(&path).unwrap(), bytes[..last]);
        if end > last {
            assert_eq!(fs::read(path.with_extension("torn")).unwrap(), bytes[last..end]);
        }
        journal.append(window(2, 20)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // Blocks of the last line that never reached the disk read as zeros.
    let mut zeroed = bytes.clone();
    zeroed[last + 5..last + 25].fill(0);
    fs::write(&path, &zeroed).unwrap();
    assert_eq!(Journal::open(&path).unwrap().last_window(), Some(1));
}

#[test]
fn damage_in_the_middle_is_corruption() {
    let (_folder, path, bytes) = written();
    let text = String::from_utf8(bytes).unwrap();
    for (from, to, line) in
        [("\"durable\":10", "\"durable\":11", 1), ("\"durable\":30", "\"durable\":3", 2), ("rollback", "rollbacc", 3)]
    {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("line {line}: ")), "{error}");
    }
    // A broken line before a torn one is not a torn tail.
    let torn = text.replacen("\"window\":1", "\"window\":7", 1);
    fs::write(&path, &torn[..torn.len() - 9]).unwrap();
    assert!(Journal::open(&path).unwrap_err().to_string().contains("line 2: "));
}

#[test]
fn checkpoint_and_log_must_agree_with_it() {
    let (_folder, path, bytes) = written();
    let log = DurablePosition::from_log;
    let journal = Journal::open(&path).unwrap();
    journal.check_reaches(3, log(30)).unwrap();
    journal.check_reaches(0, log(99)).unwrap();
    assert!(matches!(journal.check_reaches(4, log(99)), Err(TrainerError::Corrupt { .. })));
    assert!(matches!(journal.check_reaches(3, log(29)), Err(TrainerError::LogBehind { durable: 29, needed: 30, .. })));
    // Without its first line.
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    fs::write(&path, &bytes[second..]).unwrap();
    let error = Journal::open(&path).unwrap().check_reaches(1, log(99)).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_branch_knows_what_its_checkpoint_needs() {
    let (folder, path, _) = written();
    let mut journal = Journal::open(&path).unwrap();
    let skip = |step| {
        let reason = "the loss is NaN".to_owned();
        JournalEntry::SkippedStep(SkippedStep { step, reason, sequences: vec![SequenceNumber(3)] })
    };
    for entry in [skip(7), skip(8), window(3, 50)] {
        journal.append(entry).unwrap();
    }
    let branched = |name: &str, step, first, windows| {
        let path = folder.path().join(name);
        journal.branch(&path, step, first, windows).unwrap();
        Journal::open(&path).unwrap()
    };
    // A checkpoint after step 7 inside window 2: it forms that one again, and evaluates up to where window 1 ended.
    let mut branch = branched("inside", 7, 1, 3);
    assert_eq!((branch.window(0), branch.last_window()), (None, Some(2)));
    assert_eq!((branch.window(1), branch.window(2)), (journal.window(1), journal.window(2)));
    assert_eq!(branch.open_inputs(2), journal.open_inputs(2));
    assert_eq!(branch.last_state(), Some(&SamplerState { window: 2, ..journal.last_state().unwrap().clone() }));
    let events = [JournalEntry::Branch(Branch { step: 7, window: 1 }), rollback(), skip(7)];
    assert_eq!(branch.events(), events);
    let log = DurablePosition::from_log;
    branch.check_reaches(3, log(30)).unwrap();
    assert!(branch.check_reaches(4, log(99)).is_err());
    // Its next window is its own.
    branch.append(window(3, 60)).unwrap();
    branch.check_reaches(4, log(60)).unwrap();
    // A checkpoint before the first window.
    let start = branched("start", 0, 0, 0);
    start.check_reaches(0, log(0)).unwrap();
    assert_eq!(start.last_window(), None);
    assert!(start.check_reaches(1, log(99)).is_err());
}
