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
    let text =
        format!("{MINIMAL}[student]\nlayers = 2\n[evaluate]\nfiles = [{{ language = \"en\", path = \"v.txt\" }}]\n");
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
    let both = format!("{MINIMAL}[student]\n");
    assert_eq!(threads(&both), ((cores / 2).max(1), cores.div_ceil(2)));
    assert_eq!(threads(&format!("{both}[threads]\nteachers = 3\ntrainer = 5\n")), (3, 5));
    let (_, teacher) = MINIMAL.split_once("[[teacher]]").unwrap();
    assert_eq!(threads(&format!("[[teacher]]{teacher}[student]\n")), (0, cores));
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
        device = "cuda:0"
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
        "teacher[en].device: \"cuda:0\" is not available",
        "train.steps: 0 is out of range",
        "train.copies: \"some\" is not known; use \"all\" or \"best\"",
        "masking.probability: 2 is out of range",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected} not in {found:#?}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
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
