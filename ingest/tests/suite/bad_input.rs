use crate::workshop::{Workshop, corpus_of, entries, open, records, skips};
use ingest::{CorpusOptions, Format};
use prometheus::Registry;
use std::collections::BTreeMap;
use store::SequenceNumber;

const LIMIT_BYTES: usize = 8 << 20;

/// Reads `corpus`: the documents that made records, those that were skipped, and the quarantine's notes.
fn check(workshop: &Workshop, corpus: CorpusOptions, good: &[&str], bad: &[(&str, &str)]) -> Vec<serde_json::Value> {
    let name = corpus.name.clone();
    let options = workshop.options(vec![corpus]);
    let teachers = [workshop.word_teacher("words", &["en"])];
    let registry = Registry::new();
    let mut ingest =
        ingest::Ingest::open(options.clone(), teachers.to_vec(), &BTreeMap::new(), SequenceNumber(0), &registry)
            .unwrap();
    while ingest.next_group().unwrap().is_some() {}
    let again = entries(&options, &teachers);
    let documents: Vec<&str> = records(&again).iter().map(|record| &*record.document).collect();
    assert_eq!(documents, good);
    assert_eq!(skips(&again), bad);

    let notes = workshop.quarantined(&name);
    let mut noted: Vec<(&str, &str)> =
        notes.iter().map(|note| (note["document"].as_str().unwrap(), note["reason"].as_str().unwrap())).collect();
    noted.sort_unstable();
    let mut expected = bad.to_vec();
    expected.sort_unstable();
    assert_eq!(noted, expected, "one file a document, though the corpus was read twice");
    let counted: f64 = registry
        .gather()
        .iter()
        .filter(|family| family.name() == "mergedistill_ingest_quarantined_total")
        .flat_map(|family| family.get_metric())
        .map(|metric| metric.get_counter().get_value())
        .sum();
    assert_eq!(counted as usize, expected.len());
    for note in &notes {
        assert_eq!(note["source"], *name);
        let offset = note["document"].as_str().unwrap().rsplit_once('@').unwrap().1;
        assert_eq!(note["offset"].to_string(), offset);
        assert!(note["excerpt"].as_str().unwrap().len() <= 3 * 512);
        assert!(note["bytes"].as_u64().unwrap() > 0 || note["reason"] == "no_text");
    }
    notes
}

#[test]
fn bad_text_documents() {
    let workshop = Workshop::new();
    let corpus = workshop.corpus("c", "en", b"menu\n\n\xff\xfe\nrow\n\nthe\0menu\n\n\n\n \t\r\ntable\r\n\r\ncolumn");
    let (good, bad) = (["c.txt@0", "c.txt@30", "c.txt@39"], [("c.txt@6", "not_utf8"), ("c.txt@14", "nul_byte")]);
    let notes = check(&workshop, corpus, &good, &bad);
    assert!(notes.iter().any(|note| note["detail"] == "invalid UTF-8 at byte 0 of the document"));
}

#[test]
fn bad_json_lines() {
    let workshop = Workshop::new();
    let lines: [&[u8]; 15] = [
        br#"{"text": "menu", "id": 3}"#,
        br#"{"text": "menu""#,
        br#"["menu"]"#,
        b"",
        br#"{"title": "menu"}"#,
        br#"{"text": null}"#,
        br#"{"text": 5}"#,
        br#"{"text": "a\u0000b"}"#,
        br#"{"text": "\ud800"}"#,
        b"{\"text\": \"\xff\"}",
        br#"{"text": " \n "}"#,
        br#"{"text": ""}"#,
        br#"{"text": "menu"} x"#,
        br#"{"text": "a\n\nb", "more": {"text": [1]}}"#,
        br#"  {"id": "x", "text": "row"}"#,
    ];
    let mut offsets = vec![0];
    lines.iter().for_each(|line| offsets.push(offsets.last().unwrap() + line.len() + 1));
    let id = |line: usize| format!("c.jsonl@{}", offsets[line]);
    let good: Vec<String> = [0, 13, 14].map(id).to_vec();
    let bad: Vec<(String, &str)> = [
        (1, "malformed_json"),
        (2, "malformed_json"),
        (4, "missing_text"),
        (5, "missing_text"),
        (6, "missing_text"),
        (7, "nul_byte"),
        (8, "malformed_json"),
        (9, "not_utf8"),
        (10, "no_text"),
        (11, "no_text"),
        (12, "malformed_json"),
    ]
    .map(|(line, reason)| (id(line), reason))
    .to_vec();
    let corpus = workshop.json_corpus("c", "en", lines.join(&b'\n'));
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let bad: Vec<(&str, &str)> = bad.iter().map(|(id, reason)| (id.as_str(), *reason)).collect();
    check(&workshop, corpus, &good, &bad);
}

#[test]
fn giant_documents() {
    let workshop = Workshop::new();
    let line = "the menu ".repeat(LIMIT_BYTES / 9 + 1);
    let text = format!("row\n\n{line}\n\ntable\n\n{}\n\ncell", "menu\n".repeat(LIMIT_BYTES / 5 + 1));
    let after_line = 5 + line.len() + 2;
    let (table, lines) = (format!("text.txt@{after_line}"), format!("text.txt@{}", after_line + 7));
    let cell = format!("text.txt@{}", text.len() - 4);
    let corpus = workshop.corpus("text", "en", &text);
    let notes =
        check(&workshop, corpus, &["text.txt@0", &table, &cell], &[("text.txt@5", "too_large"), (&lines, "too_large")]);
    assert!(notes.iter().all(|note| note["bytes"].as_u64().unwrap() > LIMIT_BYTES as u64));

    let text = format!("{{\"text\": \"row\"}}\n{{\"text\": \"{line}\"}}\n{{\"text\": \"menu\"}}");
    let last = format!("json.jsonl@{}", text.len() - 16);
    let corpus = workshop.json_corpus("json", "en", &text);
    check(&workshop, corpus, &["json.jsonl@0", &last], &[("json.jsonl@16", "too_large")]);
}

#[test]
fn byte_order_marks_and_line_ends() {
    let workshop = Workshop::new();
    check(&workshop, workshop.corpus("a", "en", "\u{feff}menu\r\n\r\nrow\r\n"), &["a.txt@3", "a.txt@11"], &[]);
    check(&workshop, workshop.corpus("b", "en", "\u{feff}\n\nmenu"), &["b.txt@5"], &[]);
    let json = "\u{feff}{\"text\": \"menu\"}\r\n{\"text\": \"menu\"}";
    check(&workshop, workshop.json_corpus("c", "en", json), &["c.jsonl@3", "c.jsonl@21"], &[]);
    check(&workshop, workshop.corpus("d", "en", ""), &[], &[]);
    check(&workshop, workshop.corpus("e", "en", " \n\r\n\n"), &[], &[]);
}

#[test]
fn odd_names_stay_inside_the_quarantine() {
    let workshop = Workshop::new();
    let file = workshop.write(&format!("{}.txt", "ä".repeat(100)), b"\xff");
    let corpus = corpus_of("../up", "en", Format::Text, vec![file]);
    let mut ingest = open(&workshop.options(vec![corpus]), &[workshop.word_teacher("words", &["en"])]).unwrap();
    while ingest.next_group().unwrap().is_some() {}
    assert_eq!(workshop.quarantined("%2E.%2Fup").len(), 1);
}
