#![allow(clippy::unwrap_used)]

use super::*;

fn problems(text: &str) -> Vec<String> {
    Configuration::parse(text, Path::new("/etc")).unwrap_err().iter().map(ToString::to_string).collect()
}

const MINIMAL: &str = r#"
[[corpus]]
name = "en"
language = "en"
path = "text/*.txt"
[[teacher]]
name = "en"
path = "teachers/en"
languages = ["en"]
"#;

#[test]
fn defaults_are_filled_in_and_paths_are_relative_to_the_file() {
    let configuration = Configuration::parse(MINIMAL, Path::new("/etc")).unwrap();
    assert_eq!(configuration.corpus[0].path, ["/etc/text/*.txt"]);
    assert_eq!(configuration.store.path, Path::new("/etc/state/log"));
    assert_eq!(configuration.train.learning_rate, 5e-4);
    assert!(configuration.student.is_none());
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let text = format!(
        "{MINIMAL}[student]\nlayers = 2\n[train]\nschedule = \"trunk\"\n[evaluate]\nfiles = [{{ language = \"en\", path = \"v.txt\" }}]\n"
    );
    let first = toml::to_string(&Configuration::parse(&text, Path::new("/etc")).unwrap()).unwrap();
    let second = toml::to_string(&Configuration::parse(&first, Path::new("/")).unwrap()).unwrap();
    assert_eq!(first, second);
}

#[test]
fn threads_follow_from_what_there_is_to_do() {
    let threads = |text: &str| {
        let threads = Configuration::parse(text, Path::new("/etc")).unwrap().threads;
        (threads.teachers, threads.trainer)
    };
    let cores = crate::threads::cores();
    assert_eq!(threads(MINIMAL), (cores, 0));
    assert_eq!(threads(&MINIMAL.replace("languages", "labels = false\nlanguages")), (0, 0));
    let both = format!("{MINIMAL}[student]\n[train]\nsteps = 9\n");
    assert_eq!(threads(&both), ((cores / 2).max(1), cores.div_ceil(2)));
    assert_eq!(threads(&format!("{both}[threads]\nteachers = 3\ntrainer = 5\n")), (3, 5));
    let (_, teacher) = MINIMAL.split_once("[[teacher]]").unwrap();
    assert_eq!(threads(&format!("[[teacher]]{teacher}[student]\n[train]\nsteps = 9\n")), (0, cores));
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let found = problems(
        r#"
        [run]
        sed = 1
        [threads]
        trainers = 2
        teachers = -1
        [[corpus]]
        name = "fi"
        language = "fi"
        path = "x"
        [[teacher]]
        name = "en"
        path = 3
        languages = ["en"]
        device = "gpu"
        [train]
        steps = 0
        copies = "some"
        [masking]
        probability = 2
        "#,
    );
    for expected in [
        "run.sed: unknown key; did you mean `seed`?",
        "threads.trainers: unknown key; did you mean `trainer`?",
        "threads.teachers: -1 is out of range",
        "corpus[fi].language: no teacher has language `fi`",
        "teacher[en].path: must be a string",
        "teacher[en].device: \"gpu\" is not a device; use \"cpu\", \"cuda:0\"",
        "train.steps: 0 is out of range",
        "train.copies: \"some\" is not known; use \"all\" or \"best\" or \"random\"",
        "masking.probability: 2 is out of range",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected} not in {found:#?}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
}

#[test]
fn a_gpu_multiplies_in_bfloat16_unless_it_is_told_not_to() {
    let place = |text: &str| {
        let text = format!("{MINIMAL}{text}");
        let configuration = Configuration::parse(&text, Path::new("/etc"));
        configuration.map(|configuration| serde_json::to_value(configuration.teacher[0].place).unwrap().to_string())
    };
    let shown = |device: &str, precision: &str| format!(r#"{{"device":"{device}","precision":"{precision}"}}"#);
    for (text, expected) in [
        ("", shown("cpu", "float32")),
        ("device = \"cuda:1\"", shown("cuda:1", "bfloat16")),
        ("device = \"cuda:1\"\nprecision = \"float32\"", shown("cuda:1", "float32")),
        ("device = \"cuda:1\"\nprecision = \"float16\"", shown("cuda:1", "float16")),
    ] {
        assert_eq!(place(text).unwrap(), expected, "{text}");
    }
    for (text, expected) in [
        ("precision = \"bfloat16\"", "teacher[en].precision: the processor computes in float32"),
        (
            "precision = \"half\"",
            "teacher[en].precision: \"half\" is not known; use \"float32\" or \"bfloat16\" or \"float16\"",
        ),
    ] {
        assert!(place(text).unwrap_err()[0].to_string().contains(expected), "{text}");
    }
}

#[test]
fn several_gpus_train_one_student() {
    let place = |text: &str| {
        let text = format!("{MINIMAL}\n[student]\n{text}\n[train]\nsteps = 1\n");
        let configuration = Configuration::parse(&text, Path::new("/etc"));
        configuration
            .map(|configuration| serde_json::to_value(configuration.student.unwrap().place).unwrap().to_string())
    };
    for (text, expected) in [
        ("device = \"cuda:0\"", r#"{"device":"cuda:0","precision":"bfloat16"}"#),
        (
            "device = [\"cuda:0\", \"cuda:2\"]\nprecision = \"float32\"",
            r#"{"device":["cuda:0","cuda:2"],"precision":"float32"}"#,
        ),
    ] {
        assert_eq!(place(text).unwrap(), expected, "{text}");
    }
    for (text, expected) in [
        ("device = [\"cuda:0\", \"cuda:0\"]", "student.device: \"cuda:0\" is there twice"),
        (
            "device = [\"cuda:0\", \"cpu\"]",
            "student.device: a student is trained on the processor or on GPUs, not on both",
        ),
        ("precision = \"half\"", "student.precision: \"half\" is not known; use \"float32\" or \"bfloat16\""),
        (
            "device = \"cuda:0\"\nprecision = \"float16\"",
            "student.precision: a student is not trained in float16, in which small gradients vanish",
        ),
        ("device = []", "student.device: empty; give \"cpu\", or one or several GPUs"),
    ] {
        assert!(place(text).unwrap_err()[0].to_string().contains(expected), "{text}: {:?}", place(text));
    }
}

#[test]
fn the_target_of_distillation_is_one_of_three() {
    let target = |text: &str| {
        let configuration = Configuration::parse(&format!("{MINIMAL}[train]\n{text}"), Path::new("/etc"));
        configuration.map(|configuration| configuration.train.kd_target)
    };
    for name in ["renormalised", "ghost", "gold-residual"] {
        assert_eq!(target(&format!("kd_target = \"{name}\"")).unwrap(), name);
    }
    assert_eq!(target("").unwrap(), "renormalised");
    assert!(target("kd_target = \"gold\"").unwrap_err()[0].to_string().contains("\"gold-residual\""));
}

#[test]
fn a_later_target_comes_whole() {
    let train = |text: &str| {
        let configuration = Configuration::parse(&format!("{MINIMAL}[train]\n{text}"), Path::new("/etc"));
        configuration.map(|configuration| configuration.train)
    };
    let plain = train("").unwrap();
    assert_eq!((plain.kd_temperature, plain.later_target().is_some(), plain.kd_temperature_later), (1.0, false, None));
    assert!(train("kd_target_later = \"none\"").unwrap().later_target().is_none());
    let text = "kd_temperature = 2\nkd_target_later = \"ghost\"\nkd_target_later_from_step = 7";
    let later = train(text).unwrap().later_target().unwrap();
    assert_eq!((later.kd_target, later.kd_temperature, later.from_step, later.blend_steps), ("ghost", 2.0, 7, 0));
    let text = format!("{text}\nkd_temperature_later = 1\nkd_target_blend_steps = 9");
    let later = train(&text).unwrap().later_target().unwrap();
    assert_eq!((later.kd_temperature, later.blend_steps), (1.0, 9));
    for (text, expected) in [
        ("kd_target_later = \"ghost\"", "train.kd_target_later_from_step: missing; give"),
        ("kd_target_later_from_step = 7", "train.kd_target_later_from_step: goes with `kd_target_later`"),
        ("kd_temperature_later = 7", "train.kd_temperature_later: goes with `kd_target_later`"),
        ("kd_target_blend_steps = 7", "train.kd_target_blend_steps: goes with `kd_target_later`"),
        ("kd_temperature = 0", "train.kd_temperature: 0 is out of range"),
    ] {
        let found = train(text).unwrap_err();
        assert!(found.len() == 1 && found[0].to_string().starts_with(expected), "{text}: {found:?}");
    }
    let late = "steps = 5\nkd_target_later = \"ghost\"\nkd_target_later_from_step = 5";
    let found = problems(&format!("{MINIMAL}[student]\n[train]\n{late}"));
    let expected = "train.kd_target_later_from_step: 5, but training ends after 5 steps";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    assert!(train(&late.replace("steps = 5\n", "steps = 6\n")).is_ok());
}

#[test]
fn a_sampled_tail_goes_with_exact_labels_at_temperature_1() {
    let parse = |text: &str| Configuration::parse(&format!("{MINIMAL}{text}"), Path::new("/etc"));
    assert_eq!(parse("").unwrap().store.tail_samples, 0);
    assert_eq!(parse("[store]\ntail_samples = 7").unwrap().store.tail_samples, 7);
    let train = "[student]\n[train]\nsteps = 5\nkd_target_later = \"ghost\"\nkd_target_later_from_step = 1";
    for (text, expected) in [
        ("[store]\ntail_samples = 8".to_owned(), "store.tail_samples: 8 of top_k = 8: at least one label"),
        ("[store]\ntail_samples = 2\nprecision = \"compact\"".to_owned(), "store.tail_samples: goes with precision"),
        (
            format!("[store]\ntail_samples = 2\n{train}\nkd_temperature = 2\nkd_temperature_later = 1"),
            "train.kd_temperature: has to be 1 with store.tail_samples",
        ),
        (
            format!("[store]\ntail_samples = 2\n{train}\nkd_temperature_later = 2"),
            "train.kd_temperature_later: has to be 1 with store.tail_samples",
        ),
    ] {
        let found = parse(&text).unwrap_err();
        assert!(found.len() == 1 && found[0].to_string().starts_with(expected), "{text}: {found:?}");
    }
}

#[test]
fn training_ends_or_is_a_trunk() {
    let train = |text: &str| {
        let text = format!("{MINIMAL}[student]\n[train]\n{text}");
        Configuration::parse(&text, Path::new("/etc")).map(|configuration| configuration.train)
    };
    let linear = train("steps = 9").unwrap();
    assert_eq!(
        (linear.steps, linear.schedule, linear.lambda_steps, linear.lambda_floor),
        (Some(9), "linear", None, None)
    );
    let trunk = train("schedule = \"trunk\"").unwrap();
    assert_eq!(
        (trunk.steps, trunk.lambda_steps, trunk.lambda_floor),
        (None, Some(0), Some(0.5)),
        "the floor is above 0"
    );
    let trunk = train("schedule = \"trunk\"\nsteps = 7\nlambda_steps = 30\nlambda_floor = 0").unwrap();
    assert_eq!((trunk.steps, trunk.lambda_steps, trunk.lambda_floor), (Some(7), Some(30), Some(0.0)));
    assert_eq!((trunk.lambda_schedule, trunk.lambda_step_at), ("linear", None));
    let step = train("steps = 9\nlambda_schedule = \"step\"").unwrap();
    assert_eq!((step.lambda_schedule, step.lambda_step_at), ("step", Some(0.5)));
    for (text, expected) in [
        ("", "train.steps: missing; give the number of optimiser steps, or schedule = \"trunk\""),
        ("steps = 9\nlambda_floor = 0.1", "train.lambda_floor: only schedule = \"trunk\" has it"),
        ("steps = 9\nlambda_steps = 0", "train.lambda_steps: only schedule = \"trunk\" has it"),
        ("steps = 9\nschedule = \"endless\"", "train.schedule: \"endless\" is not known"),
        ("steps = 9\nlambda_schedule = \"log\"", "train.lambda_schedule: \"log\" is not known"),
        ("steps = 9\nlambda_step_at = 0.3", "train.lambda_step_at: only lambda_schedule = \"step\" has it"),
        ("steps = 9\nlambda_schedule = \"step\"\nlambda_step_at = 2", "train.lambda_step_at: 2 is out of range"),
    ] {
        let found = train(text).unwrap_err();
        assert!(found.len() == 1 && found[0].to_string().starts_with(expected), "{text}: {found:?}");
    }
    // Without a student nothing is trained, and nobody asks for how long.
    assert!(Configuration::parse(MINIMAL, Path::new("/etc")).unwrap().train.steps.is_none());
}

#[test]
fn broken_toml_is_one_problem_with_a_place() {
    let found = problems("[run\nseed = 1");
    assert!(found.len() == 1 && found[0].contains("line 1"), "{found:?}");
}

#[test]
fn paths_may_name_environment_variables() {
    let text = MINIMAL.replace("teachers/en", "${CARGO_MANIFEST_DIR}/en").replace("text/", "${NO_SUCH_VARIABLE}/");
    let found = problems(&text);
    assert_eq!(found, ["corpus[en].path: environment variable NO_SUCH_VARIABLE is not set"]);
}

#[test]
fn less_than_a_segment_cannot_be_retained() {
    let store = |text: &str| Configuration::parse(&format!("{MINIMAL}[store]\n{text}"), Path::new("/etc"));
    let kept = store("retain_bytes = 134217728\nretain_hours = 0.5").unwrap().store;
    assert_eq!((kept.retain_bytes, kept.retain_hours), (134_217_728, 0.5));
    let found = store("retain_bytes = 1000").unwrap_err();
    assert!(found.len() == 1 && found[0].to_string().starts_with("store.retain_bytes: 1000 is less"), "{found:?}");
    assert!(store("retain_hours = -1").is_err());
}

#[test]
fn a_corpus_comes_from_one_place() {
    let corpus = |text: &str| {
        let teacher = "[[teacher]]\nname = \"en\"\npath = \"t\"\nlanguages = [\"en\"]\n";
        let text = format!("{teacher}[[corpus]]\nname = \"c\"\n{text}");
        Configuration::parse(&text, Path::new("/etc")).map(|configuration| configuration.corpus[0].clone())
    };
    let files = corpus("language = \"en\"\npath = [\"a\", \"b\"]\nrounds = 3").unwrap();
    assert_eq!(files.origin(), CorpusOrigin::Files(&["/etc/a".to_owned(), "/etc/b".to_owned()]));
    assert_eq!((files.rounds, files.settle_seconds), (Some(3), None));
    let watched = corpus("language = \"en\"\nwatch = \"in\"\nsettle_seconds = 0.5\ncompression = \"zstd\"").unwrap();
    assert_eq!(watched.origin(), CorpusOrigin::Watch(Path::new("/etc/in")));
    assert_eq!((watched.settle_seconds, watched.poll_seconds, watched.rounds), (Some(0.5), Some(10.0), None));
    let followed = corpus("language_field = \"lang\"\nformat = \"jsonl\"\nfollow = \"app.log\"").unwrap();
    assert_eq!(followed.origin(), CorpusOrigin::Follow(Path::new("/etc/app.log")));
    assert_eq!(followed.format_options().compression, ingest::Compression::None);
    let pushed = corpus("language = \"en\"\nsource = \"http\"\nformat = \"jsonl\"\nid_field = \"id\"").unwrap();
    assert_eq!((pushed.origin(), pushed.format_options().id_field), (CorpusOrigin::Http, Some("id".to_owned())));
    let piped = corpus("language = \"en\"\nsource = \"pipe\"\npath = \"fifo\"").unwrap();
    assert_eq!(piped.origin(), CorpusOrigin::Pipe(Path::new("/etc/fifo")));
    for (text, expected) in [
        ("path = \"a\"", "corpus[c].language: missing; give the language of its text"),
        ("language = \"\"\npath = \"a\"", "corpus[c].language: empty"),
        ("language = \"en\"", "corpus[c].path: missing; say where its text comes from: path (files), watch"),
        ("language = \"en\"\npath = \"a\"\nwatch = \"b\"", "corpus[c].path: it can come from one place only"),
        ("language = \"en\"\nsource = \"ftp\"\npath = \"a\"", "corpus[c].source: \"ftp\" is not known; use \"http\""),
        ("language = \"en\"\nsource = \"pipe\"", "corpus[c].path: give the path of the named pipe"),
        ("language = \"en\"\npath = \"a\"\nsettle_seconds = 3", "corpus[c].settle_seconds: only a corpus with watch"),
        ("language = \"en\"\nwatch = \"a\"\nrounds = 2", "corpus[c].rounds: only a corpus of files has rounds"),
        ("language = \"en\"\nfollow = \"a\"\nformat = \"parquet\"", "corpus[c].format: a Parquet file cannot grow"),
        ("language = \"en\"\nfollow = \"a\"\ncompression = \"gzip\"", "corpus[c].compression: what is followed"),
        (
            "language = \"en\"\nfollow = \"a\"\ndocuments = \"file\"",
            "corpus[c].documents: a followed file does not end",
        ),
        ("language = \"en\"\npath = \"a\"\nid_field = \"id\"", "corpus[c].format: corpus `c`: id_field needs format"),
    ] {
        let found = corpus(text).unwrap_err();
        assert!(found.len() == 1 && found[0].to_string().starts_with(expected), "{text}: {found:?}");
    }
    let both = "language = \"en\"\nlanguage_field = \"lang\"\nformat = \"jsonl\"\npath = \"a\"";
    assert!(corpus(both).unwrap_err()[0].to_string().contains("give one of them"));
}

#[test]
fn one_corpus_reads_standard_input() {
    let stdin = MINIMAL.replace("path = \"text/*.txt\"", "source = \"stdin\"");
    assert!(Configuration::parse(&stdin, Path::new("/etc")).is_ok());
    let (corpus, _) = stdin.split_once("[[teacher]]").unwrap();
    let found = problems(&format!("{}{stdin}", corpus.replace("name = \"en\"", "name = \"again\"")));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("corpus[en].source") && found[0].contains("named pipe"), "{found:?}");
}

/// What is written down for users is read, and leaves nothing out.
#[test]
fn the_reference_is_true() {
    let reference = include_str!("../../CONFIGURATION.md");
    let blocks = reference.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let text: String = blocks.collect();
    let configuration = Configuration::parse(&text, Path::new("/etc")).unwrap();
    let effective = toml::to_string(&configuration).unwrap();
    let keys = |text: &str| -> std::collections::BTreeSet<String> {
        let keys = text.lines().filter_map(|line| line.split_once(" = "));
        keys.map(|(key, _)| key.to_owned())
            .filter(|key| !key.contains(|c: char| !c.is_ascii_lowercase() && c != '_'))
            .collect()
    };
    // A trunk may have `steps` too.
    assert_eq!(keys(&effective), keys(&text), "one of them has keys that the other has not");
}

/// All that is wrong with a file of the experiments; models need not be there.
fn problems_of(path: &Path) -> Vec<String> {
    let mut text = std::fs::read_to_string(path).unwrap().replace("hf://", "/models/");
    for name in ["TEACHERS", "CORPORA", "STATE"] {
        text = text.replace(&format!("${{MERGEDISTILL_{name}}}"), "/somewhere");
    }
    match Configuration::parse(&text, Path::new("/etc")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_configurations_of_the_experiments_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/experiments/configurations");
    let mut count = 0;
    for set in ["small", "paper"] {
        for file in std::fs::read_dir(folder.join(set)).unwrap() {
            let path = file.unwrap().path();
            assert_eq!(problems_of(&path), [""; 0], "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 20, "{count} files");
}

#[test]
fn aligned_masks_are_those_of_whole_words() {
    let masking = |text: &str| Configuration::parse(&format!("{MINIMAL}[masking]\n{text}"), Path::new("/etc"));
    let unit = |text: &str| masking(text).unwrap().masking.unit();
    assert_eq!(unit(""), ingest::MaskUnit::Token);
    assert_eq!(unit("whole_word = true"), ingest::MaskUnit::Word);
    assert_eq!(unit("align_masks = true"), ingest::MaskUnit::SharedWord);
    assert!(masking("align_masks = true").unwrap().masking.whole_word);
    let found = masking("align_masks = true\nwhole_word = false").unwrap_err();
    assert!(found.len() == 1 && found[0].to_string().starts_with("masking.whole_word: align_masks"), "{found:?}");
}

#[test]
fn the_quarantine_and_duplicates_have_limits() {
    let parse = |text: &str| Configuration::parse(text, Path::new("/etc"));
    assert_eq!(parse(MINIMAL).unwrap().quarantine.max_bytes, 128 << 20);
    assert_eq!(parse(MINIMAL).unwrap().corpus[0].deduplicate, 0);
    let found = problems(&format!("{MINIMAL}[quarantine]\nmax_bytes = 1000"));
    assert!(found.len() == 1 && found[0].starts_with("quarantine.max_bytes: 1000 is out of range"), "{found:?}");
    let found = problems(&MINIMAL.replace("[[teacher]]", "deduplicate = -1\n[[teacher]]"));
    assert!(found.len() == 1 && found[0].starts_with("corpus[en].deduplicate: -1"), "{found:?}");
    let found = problems(&MINIMAL.replacen("name = \"en\"", "name = \"a:en\"", 1));
    assert!(matches!(&found[..], [problem] if problem.contains("between corpus and language")), "{found:?}");
    let found = problems(&MINIMAL.replacen("name = \"en\"", "name = \"retry\"", 1));
    assert!(found.len() == 1 && found[0].starts_with("corpus[retry].name: this name is kept"), "{found:?}");
}

#[test]
fn weights_of_distillation_without_labels_are_named() {
    for (train, expected) in [
        ("", Some(("train.lambda_start is 1, but", "set lambda_start = 0, or"))),
        ("lambda_start = 0\nlambda_end = 0.5", Some(("train.lambda_end is 0.5, but", "set lambda_end = 0, or"))),
        ("lambda_start = 0", None),
        (
            "schedule = \"trunk\"\nlambda_start = 0\nlambda_end = 0",
            Some(("train.lambda_floor is 0.5, but", "set lambda_floor = 0, or")),
        ),
        (
            "schedule = \"trunk\"\nlambda_floor = 0.25",
            Some((
                "train.lambda_start is 1, train.lambda_floor is 0.25, but",
                "set lambda_start = 0 and lambda_floor = 0, or",
            )),
        ),
        ("schedule = \"trunk\"\nlambda_start = 0\nlambda_floor = 0", None),
    ] {
        let parse = |labels: bool| {
            let text = format!("{MINIMAL}labels = {labels}\n[student]\n[train]\nsteps = 10\n{train}\n");
            Configuration::parse(&text, Path::new("/etc")).unwrap().labels_warning()
        };
        assert_eq!(parse(true), None, "{train}");
        let found = parse(false);
        assert_eq!(found.is_some(), expected.is_some(), "{train}: {found:?}");
        for (found, (keys, remedy)) in found.iter().zip(expected) {
            assert!(found.starts_with(keys) && found.contains(remedy), "{train}: {found}");
        }
    }
}
