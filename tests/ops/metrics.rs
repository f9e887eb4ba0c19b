//! Alert rules and dashboard ask for metrics and labels that a daemon has, each alert says what to do, and the reference lists what
//! there is.

use crate::harness::{Scene, configuration, http, mergedistill, text, until};
use crate::nats::Server;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const RULES: &str = include_str!("../../ops/prometheus/alerts.yml");
const RULE_TESTS: &str = include_str!("../../ops/prometheus/alerts_test.yml");
const DASHBOARD: &str = include_str!("../../ops/grafana/mergedistill.json");

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/METRICS.md");
/// With this variable the reference is written.
const WRITE: &str = "MERGEDISTILL_WRITE_METRICS";

/// What Prometheus itself adds.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// A metric of a scrape.
#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    /// Upper bounds of a histogram's buckets, as they are written.
    bounds: Vec<String>,
}

/// The metrics of a daemon to which everything has happened that metrics begin with, and of a worker.
fn families() -> BTreeMap<String, Family> {
    let server = Server::start();
    let cluster = format!("[cluster]\nurl = \"{}\"\nrun = \"test\"\npublish = true\n", server.url());
    let scene = Scene::new(&format!(
        "{}\n{cluster}[[corpus]]\nname = \"files\"\nlanguage = \"de\"\npath = \"some.jsonl\"\nformat = \"jsonl\"\ndeduplicate = 8\n\
         [[corpus]]\nname = \"in\"\nlanguage = \"en\"\nsource = \"http\"\nformat = \"jsonl\"\n",
        configuration().replace("steps = 12", "steps = 1000000").replacen(
            "languages = [",
            "labelled_by = \"both\"\nlanguages = [",
            1
        )
    ));
    let twice = json!({"text": "Am Morgen lag das Boot noch im Hafen."});
    fs::write(scene.path("some.jsonl"), format!("{twice}\n{twice}\n{{\"title\": \"Mittags\"}}\n")).unwrap();
    let mut daemon = scene.start();
    let address = daemon.address();
    let pushed = scene.path("pushed.jsonl");
    fs::write(&pushed, format!("{}\n{{\"title\": \"no text\"}}\n", json!({"text": "The boat came back."}))).unwrap();
    let output = scene.ctl(&["push", "--corpus", "in", pushed.to_str().unwrap()]);
    assert!(text(&output.stdout).contains("\"rejected\": 1"), "{}{}", text(&output.stdout), text(&output.stderr));
    let scrape = until("evaluation, checkpoint and documents that cannot be used", || {
        let scrape = http(&address, "/metrics", &address).1;
        let happened = |line: &str| scrape.lines().any(|found| found.starts_with(line) && !found.ends_with(" 0"));
        let all = [
            "mergedistill_checkpoint_timestamp_seconds",
            "mergedistill_evaluation_timestamp_seconds",
            "mergedistill_evaluation_rdt_percent",
            "mergedistill_ingest_duplicates_total",
            "mergedistill_ingest_quarantined_total",
            "mergedistill_http_requests_total",
        ];
        all.iter().all(|line| happened(line)).then_some(scrape)
    });
    let mut families = parse(&scrape);
    families.extend(of_worker(&server));
    families
}

/// What a worker alone has.
fn of_worker(server: &Server) -> impl Iterator<Item = (String, Family)> + use<> {
    let teacher = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/teachers/demo-en");
    let mut command = mergedistill(&["worker", "--run", "test", "--url", &server.url(), "--teacher", teacher]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("metrics: http://")).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let scrape = until("the worker waits for a batch", || {
        let scrape = http(&address, "/metrics", &address).1;
        scrape.contains("mergedistill_worker_seconds_total{").then_some(scrape)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    parse(&scrape).into_iter().filter(|(name, _)| name.starts_with("mergedistill_worker_"))
}

fn parse(scrape: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut name = "";
    for line in scrape.lines() {
        if let Some((of, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            name = of;
            families.insert(of.to_owned(), Family { help: help.to_owned(), ..Family::default() });
            continue;
        }
        let family = families.get_mut(name).unwrap();
        if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            family.kind = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let (labels, _) = labels.rsplit_once('}').unwrap();
            family.labels.extend(label_names(labels).filter(|label| *label != "le").map(str::to_owned));
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let bound =
                bound.filter(|bound| family.kind == "histogram" && !family.bounds.contains(&(*bound).to_owned()));
            family.bounds.extend(bound.map(str::to_owned));
        }
    }
    families
}

/// The table of the reference.
fn table(families: &BTreeMap<String, Family>) -> String {
    let mut table = "| metric | kind | labels | |\n| --- | --- | --- | --- |\n".to_owned();
    for (name, Family { kind, help, labels, bounds }) in families {
        let kind = match &bounds[..] {
            [first, .., last, _infinite] => format!("{kind}, {first} to {last}"),
            _ => kind.clone(),
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

/// Names before `=`, `!=`, `=~` and `!~`, in what stands between braces.
fn label_names(labels: &str) -> impl Iterator<Item = &str> {
    let outside_quotes = labels.split('"').step_by(2);
    outside_quotes.map(|part| part.trim_matches([',', ' ', '=', '~', '!'])).filter(|name| !name.is_empty())
}

/// The metrics that `queries` name, each with the labels between its braces.
fn named(queries: &str) -> Vec<(&str, Vec<&str>)> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in queries.match_indices("mergedistill_").chain(queries.match_indices("process_")) {
        if queries[..at].ends_with(part_of_name) {
            continue;
        }
        let rest = &queries[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !part_of_name(c)).unwrap_or(rest.len()));
        let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(labels, _)| labels);
        found.push((name, labels.map(|labels| label_names(labels).collect()).unwrap_or_default()));
    }
    found
}

/// The queries of the dashboard, one per line.
fn dashboard_queries() -> String {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
                Value::String(query) if ["expr", "query"].contains(&key.as_str()) => queries.push(query.clone()),
                value => collect(value, queries),
            }),
            Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
            _ => {}
        }
    }
    let mut queries = Vec::new();
    collect(&serde_json::from_str(DASHBOARD).unwrap(), &mut queries);
    assert!(queries.len() > 50, "{queries:?}");
    queries.join("\n")
}

/// One daemon is enough to compare both with.
#[test]
fn every_metric_that_is_asked_for_exists_and_the_reference_lists_all() {
    let families = families();
    check_reference(&families);
    check_queries(&families);
}

fn check_reference(families: &BTreeMap<String, Family>) {
    let reference = fs::read_to_string(REFERENCE).unwrap();
    let (intro, _) = reference.split_once("| metric |").unwrap();
    let expected = format!("{intro}{}", table(families));
    if std::env::var_os(WRITE).is_some() {
        fs::write(REFERENCE, expected).unwrap();
    } else {
        let differs = expected.lines().zip(reference.lines()).find(|(expected, found)| expected != found);
        assert!(expected == reference, "{REFERENCE} is not what a daemon has ({differs:?}); {WRITE}=1 writes it anew");
    }
}

fn check_queries(families: &BTreeMap<String, Family>) {
    for (file, queries) in [
        ("alerts.yml", RULES.to_owned()),
        ("alerts_test.yml", RULE_TESTS.to_owned()),
        ("mergedistill.json", dashboard_queries()),
    ] {
        let named = named(&queries);
        assert!(named.len() > 30, "{file}: {named:?}");
        for (name, labels) in named {
            let part = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_histogram = |family: &&Family| family.kind == "histogram";
            let histogram = part.and_then(|name| families.get(name)).filter(is_histogram);
            let family = histogram.or_else(|| families.get(name).filter(|family| !is_histogram(family)));
            let family = family.unwrap_or_else(|| panic!("{file}: there is no metric {name}"));
            for label in labels {
                let bound = label == "le" && histogram.is_some();
                let known = bound || SCRAPED.contains(&label) || family.labels.contains(label);
                assert!(known, "{file}: {name} has no label {label}");
            }
        }
    }
}

#[test]
fn every_alert_says_what_it_is_and_what_to_do() {
    let alerts: Vec<&str> = RULES.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for part in ["severity: ", "summary: \"", "description: \"", "what_to_do: \""] {
            assert_eq!(alert.matches(part).count(), 1, "{name}: {part}");
        }
        assert!(RULE_TESTS.contains(&format!("\"{name}\"")), "{name} has no test");
    }
}

#[test]
fn queries_are_taken_apart() {
    let query = r#"rate(mergedistill_a_seconds_bucket{instance=~"$x", le!="{"}[5m]) / my_process_b - process_c{} > mergedistill_d"#;
    let expected =
        [("mergedistill_a_seconds_bucket", vec!["instance", "le"]), ("mergedistill_d", vec![]), ("process_c", vec![])];
    assert_eq!(named(query), expected);
}
