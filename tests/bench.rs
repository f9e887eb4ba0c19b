//! `mergedistill bench`: the fields that others rely on, figures that fit what was asked for, and bad arguments.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{mergedistill, text};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const TEACHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/teachers/demo-en");
const LINE: &str = "The menu bar lists every command of the program.";

/// A text, and the arguments that label it with a small teacher.
struct Bench {
    dir: TempDir,
    text: PathBuf,
}

impl Bench {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        fs::write(&path, text).unwrap();
        Self { dir, text: path }
    }

    /// `bench label --json` with these further arguments: its figures, and the lines of its dump.
    fn label(&self, extra: &[&str]) -> (Value, Vec<Value>) {
        let dump = self.dir.path().join("dump.jsonl");
        let mut command =
            mergedistill(&["bench", "label", "--json", "--teacher", TEACHER, "--repeat", "1", "--threads", "2"]);
        let output = command.arg("--text").arg(&self.text).arg("--dump").arg(&dump).args(extra).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines = fs::read_to_string(&dump).unwrap();
        let dumped = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (serde_json::from_slice(&output.stdout).unwrap(), dumped)
    }
}

/// `length` of each copy, in the order of the dump.
fn lengths(dump: &[Value]) -> Vec<usize> {
    dump.iter().map(|copy| copy["token_ids"].as_array().unwrap().len()).collect()
}

fn number(figures: &Value, field: &str) -> f64 {
    figures[field].as_f64().unwrap_or_else(|| panic!("no number `{field}` in {figures}"))
}

#[test]
fn labels_are_counted_timed_and_dumped() {
    let document = [LINE; 12].join("\n");
    let bench = Bench::new(&[document.as_str(); 3].join("\n\n"));
    let (figures, dump) = bench.label(&["--max-length", "40", "--top-k", "4", "--batch-tokens", "64"]);
    assert_eq!(number(&figures, "tokens") as usize, lengths(&dump).iter().sum::<usize>());
    let masked: usize = dump.iter().map(|copy| copy["masked_positions"].as_array().unwrap().len()).sum();
    assert_eq!(number(&figures, "masked_positions") as usize, masked);
    assert!(number(&figures, "batches") > 1.0);
    for (amount, rate) in [("tokens", "tokens_per_second"), ("flops", "flops_per_second")] {
        let expected = number(&figures, amount) / number(&figures, "seconds");
        assert!((number(&figures, rate) - expected).abs() < 1e-6 * expected, "{rate}: {figures}");
    }
    assert!((1.0..4096.0).contains(&number(&figures, "peak_rss_mib")), "{figures}");
    for copy in &dump {
        check_copy(copy, 40, 4);
    }
    // The same again, to the bit; other masks with another seed.
    let (_, again) = bench.label(&["--max-length", "40", "--top-k", "4", "--batch-tokens", "64"]);
    assert_eq!(dump, again);
    let (_, other) = bench.label(&["--max-length", "40", "--top-k", "4", "--batch-tokens", "64", "--seed", "1"]);
    assert_ne!(dump, other);
}

/// Positions and labels of one dumped copy fit its tokens and each other.
fn check_copy(copy: &Value, max_length: usize, top_k: usize) {
    let list = |field: &str| copy[field].as_array().unwrap().clone();
    let (tokens, masked) = (list("token_ids"), list("masked_positions"));
    assert!(tokens.len() <= max_length && !masked.is_empty(), "{copy}");
    let inside = masked.iter().all(|at| (1..tokens.len() as u64 - 1).contains(&at.as_u64().unwrap()));
    assert!(inside && masked.is_sorted_by(|a, b| a.as_u64() < b.as_u64()), "{copy}");
    assert!([list("gold_ids").len(), list("log_sum_exp").len()].iter().all(|count| *count == masked.len()), "{copy}");
    assert_eq!((list("top_ids").len(), list("top_logits").len()), (masked.len(), masked.len()), "{copy}");
    for ((ids, logits), log_sum_exp) in list("top_ids").iter().zip(list("top_logits")).zip(list("log_sum_exp")) {
        let logits: Vec<f64> = logits.as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap()).collect();
        assert_eq!((ids.as_array().unwrap().len(), logits.len()), (top_k, top_k));
        assert!(logits.is_sorted_by(|a, b| a >= b), "{logits:?}");
        assert!(logits[0] < log_sum_exp.as_f64().unwrap());
    }
}

#[test]
fn lines_are_packed_and_reading_stops_after_the_document_that_reaches_the_limit() {
    let (_, alone) = Bench::new(LINE).label(&[]);
    let line = lengths(&alone)[0] - 2;
    let documents = |count: usize| vec![[LINE; 3].join("\n"); count].join("\n\n");
    // Room for two lines and a half: the third one begins a sequence of its own.
    let narrow = (2 * line + line / 2 + 2).to_string();
    let (figures, dump) = Bench::new(&documents(1)).label(&["--max-length", &narrow]);
    assert_eq!(lengths(&dump), [line + 2, 2 * line + 2]);
    assert_eq!(number(&figures, "examples"), 2.0);
    // A line that is longer than a sequence is cut.
    let (_, dump) = Bench::new(LINE).label(&["--max-length", &line.to_string()]);
    assert_eq!(lengths(&dump), [4, line]);
    // Five documents, of which the second one reaches the limit.
    let each = 3 * line + 2;
    let (figures, _) = Bench::new(&documents(5)).label(&["--limit-tokens", &(each + 1).to_string()]);
    assert_eq!(number(&figures, "tokens") as usize, 2 * each);
    // Windows' line ends, and more than one empty line.
    let text = documents(2).replace("\n\n", "\n\n\n").replace('\n', "\r\n");
    assert_eq!(lengths(&Bench::new(&text).label(&[]).1), [each, each]);
}

/// A student that trains at once.
const SHAPE: [&str; 12] =
    ["--vocab", "60", "--hidden", "16", "--layers", "1", "--heads", "2", "--sequences", "3", "--length", "9"];

#[test]
fn training_steps_are_timed() {
    for (embedding, dropout) in [("16", "0.1"), ("8", "0")] {
        let mut command = mergedistill(&["bench", "train", "--json", "--embedding", embedding, "--dropout", dropout]);
        let output = command.args(SHAPE).args(["--steps", "2"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(number(&figures, "tokens_per_step"), 27.0);
        assert_eq!(number(&figures, "intermediate"), 64.0);
        let expected = 27.0 / number(&figures, "seconds_per_step");
        assert!((number(&figures, "tokens_per_second") - expected).abs() < 1e-6 * expected, "{figures}");
        assert!((1.0..4096.0).contains(&number(&figures, "peak_rss_mib")), "{figures}");
        // A student that has not learnt is about as good as chance.
        let losses: Vec<f64> =
            figures["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
        assert!(losses.len() == 4 && losses.iter().all(|loss| (loss - 60_f64.ln()).abs() < 0.5), "{figures}");
        assert_eq!(number(&figures, "device_bytes"), 0.0);
        assert!((1.0..27.0).contains(&number(&figures, "masked_positions_per_step")), "{figures}");
    }
}

#[test]
fn both_sides_are_measured_alone_and_together() {
    let bench = Bench::new(&[LINE; 12].join("\n"));
    let arguments =
        ["bench", "both", "--seconds", "0.02", "--rounds", "2", "--train-threads", "2", "--embedding", "16"];
    let run = |extra: &[&str]| {
        let mut command = mergedistill(&arguments);
        let output = command.args(SHAPE).args(["--teacher", TEACHER, "--text"]).arg(&bench.text).args(extra).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let figures: Value = serde_json::from_slice(&run(&["--json", "--batch-tokens", "64"])).unwrap();
    let expected = [("label_threads", 1.0), ("train_threads", 2.0), ("rounds", 2.0), ("seconds", 0.02)];
    assert!(expected.iter().all(|(field, value)| number(&figures, field) == *value), "{figures}");
    for side in ["label", "train"] {
        let side = &figures[side];
        let (alone, together) = (number(side, "alone_tokens_per_second"), number(side, "together_tokens_per_second"));
        assert!(alone > 0.0 && together > 0.0 && number(side, "fewest_in_window") >= 1.0, "{figures}");
        assert!((number(side, "ratio") - together / alone).abs() < 1e-9, "{figures}");
    }
    assert!((1.0..4096.0).contains(&number(&figures, "peak_rss_mib")), "{figures}");
    let lines = run(&[]);
    for word in ["labelling: ", "with 1 thread\n", "training: ", "with 2 threads\n", "2 rounds", "peak memory"] {
        assert!(text(&lines).contains(word), "`{word}` is not in: {}", text(&lines));
    }
}

#[test]
fn ingestion_is_counted_and_timed() {
    let document = [LINE; 12].join("\n");
    let bench = Bench::new(&[document.as_str(); 3].join("\n\n"));
    let second = bench.dir.path().join("second.txt");
    fs::write(&second, LINE).unwrap();
    let run = |texts: &[&PathBuf], extra: &[&str]| {
        let mut command =
            mergedistill(&["bench", "ingest", "--teacher", TEACHER, "--teacher", TEACHER, "--repeat", "1"]);
        let output = command.arg("--text").args(texts).args(extra).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let figures = |texts: &[&PathBuf], extra: &[&str]| -> Value {
        serde_json::from_slice(&run(texts, &[extra, &["--json"]].concat())).unwrap()
    };
    let one = figures(&[&bench.text], &["--max-length", "40"]);
    assert_eq!((number(&one, "documents"), number(&one, "bytes")), (3.0, 3.0 * document.len() as f64), "{one}");
    for (amount, scale, rate) in [("tokens", 1.0, "tokens_per_second"), ("bytes", 1e6, "mb_per_second")] {
        let expected = number(&one, amount) / scale / number(&one, "seconds");
        assert!((number(&one, rate) - expected).abs() < 1e-6 * expected, "{rate}: {one}");
    }
    let (examples, tokens) = (number(&one, "examples"), number(&one, "tokens"));
    assert!(examples > 3.0 && tokens <= 2.0 * 40.0 * examples, "{one}");
    assert!((0.05..0.3).contains(&(number(&one, "masked_positions") / tokens)), "{one}");
    assert!((1.0..4096.0).contains(&number(&one, "peak_rss_mib")), "{one}");
    // Two threads read the same each; figures of amounts are those of one.
    let two = figures(&[&bench.text, &second], &["--max-length", "40", "--threads", "2"]);
    assert_eq!((number(&two, "documents"), number(&two, "threads")), (4.0, 2.0), "{two}");
    let expected = 2.0 * number(&two, "tokens") / number(&two, "seconds");
    assert!((number(&two, "tokens_per_second") - expected).abs() < 1e-6 * expected, "{two}");
    let limited = figures(&[&bench.text], &["--limit-tokens", "100", "--batch-tokens", "64"]);
    assert!((100.0..tokens).contains(&number(&limited, "tokens")), "{limited}");
    let lines = run(&[&bench.text], &[]);
    for word in ["3 documents", "2 teachers", "MB/s", "1 thread:", "peak memory"] {
        assert!(text(&lines).contains(word), "`{word}` is not in: {}", text(&lines));
    }
}

#[test]
fn figures_are_readable_without_json() {
    let bench = Bench::new(LINE);
    let arguments = ["bench", "label", "--teacher", TEACHER, "--repeat", "1", "--text"];
    let label = mergedistill(&arguments).arg(&bench.text).output().unwrap();
    let train = mergedistill(&["bench", "train", "--vocab", "60", "--layers", "1", "--steps", "1", "--sequences", "1"]);
    for (output, threads) in [(label, "1 thread:"), ({ train }.output().unwrap(), "2 threads:")] {
        assert!(output.status.success(), "{}", text(&output.stderr));
        for word in ["tokens/s", threads, "peak memory"] {
            assert!(text(&output.stdout).contains(word), "`{word}` is not in: {}", text(&output.stdout));
        }
    }
}

#[test]
fn bad_arguments() {
    let bench = Bench::new(LINE);
    let path = bench.text.to_str().unwrap();
    let not_utf8 = bench.dir.path().join("bytes");
    fs::write(&not_utf8, b"\xff\xfe\n").unwrap();
    let empty = bench.dir.path().join("empty");
    fs::write(&empty, "\n\n").unwrap();
    let label = |teacher: &str, text: &str, extra: &[&str], code, word| {
        check(&[&["label", "--teacher", teacher, "--text", text], extra].concat(), code, word);
    };
    label("/no/teacher", path, &[], 66, "/no/teacher");
    label(TEACHER, "/no/text", &[], 66, "/no/text");
    label(TEACHER, not_utf8.to_str().unwrap(), &[], 65, "not UTF-8");
    label(TEACHER, empty.to_str().unwrap(), &[], 65, "no text");
    label(TEACHER, path, &["--threads", "0"], 64, "--threads");
    label(TEACHER, path, &["--max-length", "2"], 64, "--max-length");
    label(TEACHER, path, &["--max-length", "129"], 64, "128 positions");
    label(TEACHER, path, &["--top-k", "513"], 64, "--top-k");
    label(TEACHER, path, &["--dump", "/no/such/folder/dump"], 73, "/no/such/folder/dump");
    label(&few_words(&bench), path, &[], 64, "fewer than --top-k 8");
    check(&["label", "--text", path], 64, "--teacher");
    let ingest = |teacher: &str, text: &str, code, word| {
        check(&["ingest", "--teacher", teacher, "--text", text], code, word);
    };
    ingest("/no/teacher", path, 66, "/no/teacher");
    ingest(TEACHER, "/no/text", 66, "/no/text");
    ingest(TEACHER, empty.to_str().unwrap(), 65, "no text");
    check(&["ingest", "--text", path], 64, "--teacher");
    check(&["train", "--threads", "0"], 64, "--threads");
    check(&["train", "--hidden", "10", "--heads", "3"], 64, "not a multiple");
    check(&["train", "--dropout", "1"], 64, "hidden_dropout_prob");
    check(&["train", "--vocab", "5"], 64, "--vocab");
    let both = ["both", "--teacher", TEACHER, "--text", path];
    for seconds in ["0", "-1", "nan", "3601", "soon"] {
        check(&[&both[..], &[&format!("--seconds={seconds}")]].concat(), 64, "seconds above 0");
    }
    check(&[&both[..], &["--label-threads", "0"]].concat(), 64, "--label-threads");
    check(&[&both[..], &["--hidden", "10", "--heads", "3"]].concat(), 64, "not a multiple");
    check(&["both", "--teacher", "/no/teacher", "--text", path], 66, "/no/teacher");
}

fn check(arguments: &[&str], code: i32, word: &str) {
    let output = mergedistill(&["bench"]).args(arguments).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
}

/// A teacher's folder whose tokenizer has six words; nobody looks at the weights.
fn few_words(bench: &Bench) -> String {
    let folder = bench.dir.path().join("few-words");
    fs::create_dir(&folder).unwrap();
    fs::copy(format!("{TEACHER}/config.json"), folder.join("config.json")).unwrap();
    fs::write(folder.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nmenu\n").unwrap();
    folder.to_str().unwrap().to_owned()
}
