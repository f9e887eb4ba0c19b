//! `log audit`: equal labels pass, others do not; the teacher is the one that made them.

use crate::harness::text;
use crate::scene::{ENTRIES, Scene, TOP_K, copies_of, entries, expect, folder, identity};
use serde_json::{Value, json};
use std::process::Output;
use store::{ComputedIn, Entry, Label, Precision};

fn audit(scene: &Scene, teacher: &str, arguments: &[&str]) -> Output {
    let folder = folder(teacher);
    scene.run("audit", &[&["--teacher", folder.to_str().unwrap()], arguments].concat())
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {report}"))
}

/// Records with a labelled copy of a teacher.
fn labelled(teacher: u16) -> u64 {
    let mut entries = entries().to_vec();
    let has = |entry: &mut Entry| copies_of(entry).iter().any(|copy| copy.teacher == teacher && copy.label.is_some());
    entries.iter_mut().map(has).filter(|has| *has).count() as u64
}

/// The log with one label of teacher `both` changed.
fn changed(change: impl Fn(&mut Label)) -> Scene {
    let mut entries = entries().to_vec();
    let copy = entries.iter_mut().rev().flat_map(copies_of).find(|copy| copy.teacher == 1).unwrap();
    change(copy.label.as_mut().unwrap());
    Scene::with(Precision::Exact, &identity(), entries)
}

#[test]
fn exact_labels_are_those_of_the_teacher() {
    let scene = Scene::new(Precision::Exact);
    for (name, teacher, index) in [("en", "demo-en", 0), ("both", "demo-en-de", 1)] {
        let output = audit(&scene, teacher, &["--json", "--threads", "2"]);
        expect(&output, 0, &[]);
        let report = report(&output);
        assert_eq!((report["teacher"].as_str(), report["precision"].as_str()), (Some(name), Some("exact")));
        assert_eq!(report["records"].as_u64(), Some(labelled(index)));
        assert_eq!(number(&report, "/positions"), 2.0 * number(&report, "/records"));
        assert_eq!(number(&report, "/entries"), TOP_K as f64 * number(&report, "/positions"));
        for field in ["log_p", "gold_log_p", "log_sum_exp", "shortfall", "kl"] {
            let (max, bound) = (number(&report, &format!("/{field}/max")), number(&report, &format!("/{field}/bound")));
            assert!(max <= bound && bound <= 2e-3, "{field}: {report}");
        }
        assert_eq!(report["within_bounds"], true);
    }
    let output = audit(&scene, "demo-en", &["--sample", "2"]);
    expect(&output, 0, &[]);
    assert!(text(&output.stdout).contains("2 records, 4 positions"), "{}", text(&output.stdout));
}

/// Of a sampled tail the exact head is held against the teacher; what was drawn stands for others, and says nothing of itself.
#[test]
fn of_a_sampled_tail_the_head_is_compared() {
    let log = |at: usize| {
        let mut entries = entries().to_vec();
        for copy in entries.iter_mut().flat_map(copies_of) {
            if let Some(label) = &mut copy.label {
                label.top_logits.iter_mut().skip(at).step_by(TOP_K).for_each(|logit| *logit += 3.0);
            }
        }
        let mut identity = identity();
        identity.settings.insert(store::TAIL_SAMPLES_KEY.to_owned(), "2".to_owned());
        Scene::with(Precision::Exact, &identity, entries)
    };
    let output = audit(&log(3), "demo-en-de", &["--json"]);
    expect(&output, 0, &[]);
    let report = report(&output);
    assert_eq!(number(&report, "/entries"), 2.0 * number(&report, "/positions"));
    assert_eq!((number(&report, "/id_sets_differ"), &report["within_bounds"]), (0.0, &Value::Bool(true)));
    expect(&audit(&log(1), "demo-en-de", &[]), 65, &["differ by more than"]);
}

#[test]
fn a_seed_draws_the_same_records_again() {
    let scene = Scene::new(Precision::Compact);
    let draw = |seed: &str| report(&audit(&scene, "demo-en", &["--json", "--sample", "2", "--seed", seed]));
    assert_eq!(draw("3"), draw("3"));
    assert!((0..8).any(|seed| draw(&seed.to_string()) != draw("3")), "{ENTRIES} entries, always the same two");
}

#[test]
fn compact_labels_are_within_their_bounds() {
    let output = audit(&Scene::new(Precision::Compact), "demo-en-de", &["--json"]);
    expect(&output, 0, &[]);
    let report = report(&output);
    assert_eq!(report["precision"], "compact");
    assert_eq!(number(&report, "/id_sets_differ"), 0.0);
    let worst = number(&report, "/log_p/max");
    assert!(worst > 1e-3 && worst <= number(&report, "/log_p/bound"), "{report}");
    assert!((number(&report, "/log_sum_exp/bound") - (1.0 / 32.0 + 1e-3)).abs() < 1e-9);
    assert_eq!(number(&report, "/kl/bound"), 2e-4);
    assert!(number(&report, "/kl/mean") <= 2e-4, "{report}");
}

#[test]
fn one_wrong_value_is_found() {
    let check = |field: &str, change: &dyn Fn(&mut Label)| {
        let scene = changed(change);
        let output = audit(&scene, "demo-en-de", &["--json"]);
        expect(&output, 65, &["labels of teacher `both`", "precision `exact`"]);
        let report = report(&output);
        assert_eq!(report["within_bounds"], false);
        let max = &report[field]["max"];
        assert!(max.is_null() || max.as_f64() > report[field]["bound"].as_f64(), "{field}: {report}");
        // The other teacher's labels are as they were.
        expect(&audit(&scene, "demo-en", &[]), 0, &[]);
    };
    check("log_p", &|label| label.top_logits[TOP_K - 1] -= 0.01);
    check("gold_log_p", &|label| label.gold_logits[1] += 0.01);
    check("log_sum_exp", &|label| label.log_sum_exp[0] += 0.01);
    check("log_p", &|label| label.top_ids[1] = 77);
    check("shortfall", &|label| label.top_ids[1] = label.top_ids[0]);
    check("shortfall", &|label| label.top_ids[1] = 1 << 20);
    check("log_sum_exp", &|label| label.log_sum_exp[0] = f32::NAN);
}

/// The log knows what each label was computed in, and so how far it may be from what the processor says.
#[test]
fn coarser_numbers_have_wider_bounds() {
    let far = |label: &mut Label| label.log_sum_exp.iter_mut().for_each(|value| *value += 0.05);
    let mixed = changed(|label| {
        far(label);
        label.computed_in = ComputedIn::Bfloat16;
    });
    let report_of =
        |more: &[&str]| report(&audit(&mixed, "demo-en-de", &[&["--json", "--sample", "1000"], more].concat()));
    let all = report_of(&[]);
    let records = all["records"].as_u64().unwrap();
    assert_eq!(all["computed_in"], json!({"bfloat16": 1, "float32": records - 1}));
    assert_eq!((number(&all, "/log_sum_exp/bound"), &all["within_bounds"]), (0.1, &Value::Bool(true)));
    let exact = report_of(&["--computed-in", "float32"]);
    assert_eq!((exact["records"].as_u64(), number(&exact, "/log_sum_exp/bound")), (Some(records - 1), 1e-3));
    let narrow = report_of(&["--computed-in", "bfloat16"]);
    assert!(narrow["records"] == 1 && number(&narrow, "/log_sum_exp/max") > 0.04, "{narrow}");
    let none = audit(&mixed, "demo-en-de", &["--computed-in", "float16"]);
    expect(&none, 66, &["no labels of teacher `both` that were computed in float16"]);
    expect(&audit(&changed(far), "demo-en-de", &["--sample", "1000"]), 65, &["differ by more than"]);
}

#[test]
fn another_teacher_is_refused() {
    let scene = Scene::new(Precision::Exact);
    let output = audit(&scene, "demo-es", &[]);
    let short = |fingerprint: &str| fingerprint[..12].to_owned();
    let mut words = vec![short(&model::fingerprint_weights(&folder("demo-es")).unwrap())];
    words.extend(identity().teachers[..2].iter().map(|entry| short(&entry.weights_fingerprint)));
    words.extend(identity().teachers[..2].iter().map(|entry| short(&entry.tokenizer_fingerprint)));
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["`en`", "`both`"]).collect();
    expect(&output, 78, &words);
    expect(&audit(&scene, "demo-en", &["--name", "both"]), 78, &["`both`"]);
    expect(&audit(&scene, "demo-en", &["--name", "plain"]), 64, &["`plain`", "`en`, `both`"]);
    expect(&audit(&scene, "no-such-teacher", &[]), 66, &["no-such-teacher"]);
}

#[test]
fn a_teacher_with_two_names_needs_one() {
    let mut identity = identity();
    let again = store::TeacherEntry { name: "en-again".to_owned(), ..identity.teachers[0].clone() };
    identity.teachers.push(again);
    let scene = Scene::with(Precision::Exact, &identity, entries().to_vec());
    expect(&audit(&scene, "demo-en", &[]), 64, &["`en` and as `en-again`", "--name"]);
    expect(&audit(&scene, "demo-en", &["--name", "en"]), 0, &[]);
    expect(&audit(&scene, "demo-en", &["--name", "en-again"]), 66, &["no labels of teacher `en-again`"]);
}

#[test]
fn a_live_log_is_audited_as_far_as_it_is_durable() {
    let (scene, mut log) = Scene::live();
    log.append(&entries()[..10]).unwrap();
    log.sync().unwrap();
    log.append(&entries()[10..20]).unwrap();
    let output = audit(&scene, "demo-en-de", &["--json"]);
    expect(&output, 0, &[]);
    let durable = entries()[..10].iter().filter(|entry| matches!(entry.payload, store::Payload::Record(_))).count();
    assert_eq!(report(&output)["records"].as_u64(), Some(durable as u64));
}
