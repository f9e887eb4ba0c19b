//! What `log stat`, `verify` and `dump` tell.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, block, durable, entry, identity, open, options, sealed, segments, verify};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use store::{Entry, LogStat, Payload, Record, StoreError};

fn stat(disk: &MemoryDisk) -> LogStat {
    store::log::stat_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap()
}

fn records(entries: &[Entry]) -> impl Iterator<Item = &Record> {
    entries.iter().filter_map(|entry| match &entry.payload {
        Payload::Record(record) => Some(record),
        Payload::Skip(_) | Payload::End => None,
    })
}

#[test]
fn stat_counts_what_is_there() {
    let disk = sealed(&[5, 9, 30]);
    let stat = stat(&disk);
    let entries = block(0..30);
    let copies = || records(&entries).flat_map(|record| &record.copies);
    assert_eq!(stat.records, records(&entries).count() as u64);
    assert_eq!(stat.skips, 30 - stat.records);
    assert_eq!(stat.copies, copies().count() as u64);
    assert_eq!(stat.corpus_tokens, copies().map(|copy| copy.token_ids.len() as u64).sum::<u64>());
    assert_eq!(stat.masked_positions, copies().map(|copy| copy.gold_ids.len() as u64).sum::<u64>());
    let files = disk.files(Path::new(DIR));
    assert_eq!(stat.bytes, segments(&disk).iter().map(|path| files[path].len() as u64).sum::<u64>());
    assert_eq!((stat.segments, stat.blocks, stat.durable), (3, 3, durable(30)));
    assert_eq!(stat.appended, stat.durable.end());
    assert_eq!(stat.languages.values().map(|language| language.records + language.held_out).sum::<u64>(), stat.records);
    assert_eq!(
        stat.languages["de"].held_out,
        records(&entries).filter(|r| &*r.language == "de" && r.held_out).count() as u64
    );
    assert_eq!(stat.sources["de"], entry(28).cursor);
    let label_columns =
        ["masked_positions", "gold_ranks", "gold_ids", "top_ids", "top_logits", "log_sum_exp", "gold_logits"];
    assert_eq!(stat.label_bytes, label_columns.iter().map(|column| stat.column_bytes[column]).sum::<u64>());
    assert_eq!(stat.token_bytes, stat.column_bytes["token_ids"]);
    assert!(stat.label_bytes > 0 && stat.token_bytes > 0);
}

#[test]
fn stat_has_the_promised_fields() {
    let json = serde_json::to_value(stat(&sealed(&[5]))).unwrap();
    let promised = [
        "records",
        "copies",
        "masked_positions",
        "corpus_tokens",
        "bytes",
        "label_bytes",
        "token_bytes",
        "segments",
        "appended",
        "durable",
    ];
    for field in promised {
        assert!(json[field].is_u64(), "{field}: {}", json[field]);
    }
}

#[test]
fn verify_finds_a_record_that_is_there_twice() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, &options(1)).unwrap();
    log.append(&block(0..5)).unwrap();
    let mut again = block(5..8);
    again[1].payload = entry(2).payload;
    log.append(&again).unwrap();
    log.seal().unwrap();
    let failure = verify(&disk).unwrap_err();
    assert!(matches!(failure, StoreError::Corrupt { .. }));
    assert!(failure.to_string().contains("entries 2 and 6 are the same record"), "{failure}");
}

#[test]
fn verify_checks_cursors_across_segments() {
    let disk = sealed(&[5, 9]);
    let path = segments(&disk).pop().unwrap();
    let mut bytes = disk.files(Path::new(DIR)).remove(&path).unwrap();
    let header = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let at = bytes[..header].windows(6).position(|window| window == b"123456").unwrap();
    bytes[at] = b'9';
    let checksum = crc32fast::hash(&bytes[..header]).to_le_bytes();
    bytes[header..header + 4].copy_from_slice(&checksum);
    disk.put(&path, bytes);
    let failure = verify(&disk).unwrap_err();
    assert!(failure.to_string().contains("cursors"), "{failure}");
}

#[test]
fn dump_has_the_promised_shape() {
    let mut entry = entry(0);
    let Payload::Record(record) = &mut entry.payload else { panic!("entry 0 is a record") };
    record.copies.truncate(2);
    let label = record.copies[0].label.as_mut().unwrap();
    label.top_logits = vec![9.5, 8.25, 0.1, 3.5, 2.5, -1.0];
    label.log_sum_exp = vec![11.25, 12.5];
    label.gold_logits = vec![9.5, -3.0];
    for copy in &mut record.copies {
        copy.token_ids = vec![2, 10, 4, 11, 4, 3];
        copy.masked_positions = vec![2, 4];
        copy.gold_ids = vec![17, 18];
    }
    let copy = |teacher: &str, label: [Value; 4]| {
        let [top_ids, top_logits, log_sum_exp, gold_logits] = label;
        json!({
            "teacher": teacher, "token_ids": [2, 10, 4, 11, 4, 3], "masked_positions": [2, 4], "gold_ids": [17, 18],
            "top_ids": top_ids, "top_logits": top_logits, "log_sum_exp": log_sum_exp, "gold_logits": gold_logits,
        })
    };
    let labelled = [
        json!([[17, 4, 7999], [3, 2, 1]]),
        json!([[9.5, 8.25, 0.1], [3.5, 2.5, -1.0]]),
        json!([11.25, 12.5]),
        json!([9.5, -3.0]),
    ];
    let expected = json!({
        "seq": 0, "source": "en", "document": "text/en.txt@0", "span": [0, 100], "language": "en", "round": 0,
        "held_out": false, "copies": [copy("en", labelled), copy("fi", Default::default())],
    });
    let dumped = store::dump::record_json(&identity(), &entry);
    assert_eq!(dumped, expected);
    assert_eq!(dumped.to_string(), expected.to_string(), "the order of fields too");
}
