//! From files to scores, with the small teachers of the demo.

use model::{Encoder, Tokenizer};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use trainer::downstream::task_model::{TaskModel, Weights};
use trainer::downstream::words::Columns;
use trainer::downstream::{
    DataSet, Destination, FineTuneOptions, FineTuning, Given, Metric, Outcome, Preset, Report, Sequence, Split, Task,
    Test, run,
};

fn teacher() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/demo/teachers/demo-en")
}

/// Sentences whose tags follow from their words.
fn tagged(sentences: usize) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("the", "DET"),
        ("house", "NOUN"),
        ("water", "NOUN"),
        ("is", "VERB"),
        ("makes", "VERB"),
        ("old", "ADJ"),
        ("a", "DET"),
        (".", "PUNCT"),
    ];
    let word = |sentence: usize, at: usize| WORDS[(sentence * 7 + at * (sentence % 3 + 1)) % WORDS.len()];
    let line = |(word, tag)| format!("{word}\t{tag}\n");
    let of = |sentence: usize| (0..4 + sentence % 5).map(|at| line(word(sentence, at))).collect::<String>() + "\n";
    (0..sentences).map(of).collect()
}

struct Files {
    _folder: TempDir,
    data: DataSet,
}

fn read(task: Task, name: &str, text: &str) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Files { data: DataSet::read(task, &path, Columns::default()).unwrap(), _folder: folder }
}

fn quick() -> Given {
    Given { epochs: Some(3), learning_rate: Some(2e-3), batch: Some(8), max_length: Some(16), ..Given::default() }
}

fn fine_tuned(task: Task, data: &DataSet, given: &Given, seed: u64, threads: usize) -> (Report, TaskModel) {
    let encoder = Encoder::load(&teacher()).unwrap();
    let tokenizer = Tokenizer::load(&teacher()).unwrap();
    let positions = encoder.configuration.max_position_embeddings;
    let options = FineTuneOptions::new(task, given, positions, seed).unwrap();
    let Split { train, dev, test } = data.clone().split([6, 1, 1]).unwrap();
    let tests = [Test::new("test", test.unwrap())];
    let work = FineTuning {
        encoder: &encoder,
        tokenizer: &tokenizer,
        task,
        train: &train,
        dev: dev.as_ref(),
        tests: &tests,
        options: &options,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let outcome = pool.install(|| run(&work, |_| {})).unwrap();
    (outcome.report, outcome.model)
}

#[test]
fn a_tagger_learns_whatever_the_number_of_threads() {
    let files = read(Task::Token, "tags.tsv", &tagged(64));
    let (report, model) = fine_tuned(Task::Token, &files.data, &quick(), 1, 1);
    assert!(report.tests["test"][&Metric::Accuracy] > 95.0, "{report:?}");
    assert!(report.epochs[2].loss < 0.5 * report.epochs[0].loss, "{report:?}");
    let best = report.epochs.iter().map(|epoch| epoch.score.unwrap()).fold(0.0, f64::max);
    assert_eq!(report.dev.as_ref().unwrap()[&Metric::Accuracy], best);
    assert_eq!(report.epochs.iter().find(|epoch| epoch.score == Some(best)).unwrap().epoch, report.best_epoch);

    let (same, other_threads) = fine_tuned(Task::Token, &files.data, &quick(), 1, 3);
    assert_eq!(same, report);
    assert!(other_threads.weights() == model.weights());
    assert!(fine_tuned(Task::Token, &files.data, &quick(), 2, 1).1.weights() != model.weights());
}

/// Which of two words a text holds, and whether a pair holds the same one, in files of each format.
fn classified(pairs: bool) -> [(String, &'static str); 2] {
    let word = |at: usize| ["water", "house"][at % 2];
    let texts = (0..48).map(|at| {
        let (first, second) = (format!("the {} is old", word(at)), format!("a {} .", word(at / 2)));
        let class = if pairs { word(at) == word(at / 2) } else { word(at) == "water" };
        (first, second, class)
    });
    let table = texts.clone().map(|(first, second, class)| match pairs {
        true => format!("{first}\t{second}\t{class}\n"),
        false => format!("{first}\t{class}\n"),
    });
    let lines = texts.map(|(first, second, class)| {
        let value = serde_json::json!({"sentence1": first, "sentence2": second, "label": class.to_string()});
        format!("{value}\n")
    });
    [(table.collect(), "a.tsv"), (lines.collect(), "a.jsonl")]
}

#[test]
fn texts_and_pairs_are_classified() {
    let given = Given { epochs: Some(12), learning_rate: Some(1e-3), batch: Some(4), ..quick() };
    for (task, pairs) in [(Task::Sequence, false), (Task::Pair, true)] {
        let reports = classified(pairs).map(|(text, name)| {
            let files = read(task, name, &text);
            fine_tuned(task, &files.data, &given, 2, 2).0
        });
        assert_eq!(reports[0], reports[1]);
        assert_eq!(reports[0].classes, ["false", "true"]);
        assert!(reports[0].tests["test"][&Metric::Accuracy] > 80.0, "{:?}", reports[0]);
    }
}

/// The answer is the word behind "is", in contexts that need several windows.
#[test]
fn questions_are_answered() {
    const WORDS: [&str; 6] = ["old", "water", "house", "new", "good", "long"];
    let asked = (0..64).map(|at| {
        let answer = WORDS[at * 5 % WORDS.len()];
        let before = "the house makes water . ".repeat(at % 3);
        let start = before.chars().count() + "it is ".len();
        let context = format!("{before}it is {answer} . the house makes water .");
        let answers = [serde_json::json!({"text": answer, "answer_start": start})];
        let asked = serde_json::json!([{"id": at.to_string(), "question": "what is it ?", "answers": answers}]);
        serde_json::json!({"context": context, "qas": asked})
    });
    let paragraphs: Vec<_> = asked.collect();
    let text = serde_json::json!({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}).to_string();
    let files = read(Task::QuestionAnswering, "questions.json", &text);
    let given = Given { epochs: Some(8), max_length: Some(24), doc_stride: Some(6), ..quick() };
    let (report, _) = fine_tuned(Task::QuestionAnswering, &files.data, &given, 1, 2);
    assert!(report.train_sequences > report.train_examples, "{report:?}");
    let scores = &report.tests["test"];
    assert!(scores[&Metric::F1] > 80.0 && scores[&Metric::ExactMatch] > 60.0, "{report:?}");
    assert!(scores[&Metric::F1] >= scores[&Metric::ExactMatch]);
}

/// What is saved is loaded again, with its head, and predicts the same.
#[test]
fn a_fine_tuned_model_can_be_saved() {
    let files = read(Task::Token, "tags.tsv", &tagged(16));
    let given = Given { epochs: Some(1), ..quick() };
    let (report, mut model) = fine_tuned(Task::Token, &files.data, &given, 1, 1);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tagger");
    let destination = Destination::claim(&out, &teacher(), &teacher()).unwrap();
    // Of an earlier model, with another tokenizer.
    std::fs::write(out.join("vocab.txt"), "a").unwrap();
    model.save(&destination, &report.classes).unwrap();
    assert!(!out.join("vocab.txt").exists());

    let configuration: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(configuration["architectures"][0], "BertForTokenClassification");
    assert_eq!(configuration["id2label"]["0"], report.classes[0].as_str());
    let stored = candle_core::safetensors::load(out.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    let encoder = Encoder::load(&out).unwrap();
    let mut loaded = TaskModel::new(&encoder, model.head().kind(), 9, None).unwrap();
    let mut head = vec![0.0; loaded.head().length()];
    for slot in loaded.head().slots() {
        let values = stored[&slot.name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        head[slot.range.clone()].copy_from_slice(&values);
    }
    loaded.set_weights(&Weights { head, ..loaded.weights() });
    let sequence = Sequence { token_ids: vec![2, 9, 14, 3], rows: vec![1, 2], ..Sequence::default() };
    assert_eq!(loaded.predict(std::slice::from_ref(&sequence)).unwrap(), model.predict(&[sequence]).unwrap());
    assert_eq!(Tokenizer::load(&out).unwrap().fingerprint(), Tokenizer::load(&teacher()).unwrap().fingerprint());
}

/// Sentences that are too long are cut, words that vanish are there all the same, and unknown tags are wrong.
#[test]
fn every_word_is_scored() {
    let files = read(Task::Token, "tags.tsv", &tagged(16));
    let long = (0..50).map(|at| if at % 2 == 0 { "house\tNOUN\n" } else { "\u{200b}\u{7}x\u{301}\tODD\n" });
    let test = read(Task::Token, "test.tsv", &long.collect::<String>());
    let encoder = Encoder::load(&teacher()).unwrap();
    let tokenizer = Tokenizer::load(&teacher()).unwrap();
    let given = Given { max_length: Some(8), ..quick() };
    let options = FineTuneOptions::new(Task::Token, &given, 64, 0).unwrap();
    let tests = [Test::new("long", test.data)];
    let work = FineTuning {
        encoder: &encoder,
        tokenizer: &tokenizer,
        task: Task::Token,
        train: &files.data,
        dev: None,
        tests: &tests,
        options: &options,
    };
    let Outcome { report, predictions, .. } = run(&work, |_| {}).unwrap();
    assert!(report.tests["long"][&Metric::Accuracy] <= 50.0, "{report:?}");
    assert!(report.tests["long"][&Metric::Accuracy] > 30.0, "{report:?}");
    assert_eq!(report.unknown_classes["long"], ["ODD"]);
    // What is predicted is what is scored.
    assert_eq!(predictions["long"].scores(), report.tests["long"]);
    assert_eq!((report.best_epoch, report.dev), (3, None));
}

#[test]
fn unusable_options_are_refused() {
    for (given, expected) in [
        (Given { max_length: Some(65), ..Given::default() }, "max_length is 65, but the model takes 64 tokens"),
        (Given { learning_rate: Some(f64::NAN), ..Given::default() }, "learning_rate is NaN; expected 0 to 1"),
        (Given { batch: Some(0), ..Given::default() }, "batch is 0; expected at least 1"),
        (Given { dropout: Some(1.0), ..Given::default() }, "dropout is 1; expected 0 to 0.9"),
        (
            Given { metric: Some(Metric::ExactMatch), ..Given::default() },
            "this task has no metric exact match; it has accuracy, precision, recall, F1",
        ),
        (
            Given { preset: Some(Preset::Xquad), ..Given::default() },
            "this task has no preset xquad; it has panx, udpos",
        ),
    ] {
        assert_eq!(FineTuneOptions::new(Task::Token, &given, 64, 0).unwrap_err().to_string(), expected);
    }
    let usual = FineTuneOptions::new(Task::Token, &Given::default(), 512, 7).unwrap();
    assert_eq!((usual.epochs, usual.batch, usual.max_length, usual.learning_rate), (10, 32, 256, 3e-5));
    let given = Given { preset: Some(Preset::Udpos), epochs: Some(1), ..Given::default() };
    let xtreme = FineTuneOptions::new(Task::Token, &given, 512, 7).unwrap();
    assert_eq!((xtreme.epochs, xtreme.batch, xtreme.max_length, xtreme.learning_rate), (1, 64, 128, 5e-6));
    let small = read(Task::Token, "tags.tsv", "a\tX\n\nb\tY\n");
    let error = small.data.split([80, 10, 10]).unwrap_err().to_string();
    assert_eq!(error, "2 examples leave none for the development part of the split");
}

/// Whoever learns from a text must not be asked about it.
#[test]
fn a_split_keeps_the_questions_of_a_text_together() {
    let paragraph = |at: usize| {
        let question = |number: usize| serde_json::json!({"id": format!("{at}-{number}"), "question": "x?", "answers": [{"text": "a", "answer_start": 0}]});
        serde_json::json!({"context": format!("a {at}"), "qas": [question(0), question(1), question(2)]})
    };
    let paragraphs: Vec<_> = (0..8).map(paragraph).collect();
    let text = serde_json::json!({"data": [{"paragraphs": paragraphs}]}).to_string();
    let files = read(Task::QuestionAnswering, "squad.json", &text);
    let Split { train, dev, test } = files.data.split([2, 1, 1]).unwrap();
    let contexts = |set: &DataSet| match set {
        DataSet::Questions(questions) => questions.iter().map(|question| question.context.to_string()).collect(),
        _ => std::collections::BTreeSet::new(),
    };
    let (dev, test) = (dev.unwrap(), test.unwrap());
    assert_eq!([train.len(), dev.len(), test.len()], [12, 6, 6]);
    let all = [&train, &dev, &test].map(contexts);
    assert!(all[0].is_disjoint(&all[1]) && all[0].is_disjoint(&all[2]) && all[1].is_disjoint(&all[2]), "{all:?}");
    let two = read(Task::QuestionAnswering, "squad.json", &text.replace("a 1", "a 0"));
    let error = two.data.split([80, 10, 1]).unwrap_err().to_string();
    assert_eq!(error, "7 contexts leave none for the development part of the split");
}
