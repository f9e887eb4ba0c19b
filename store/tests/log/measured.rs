//! What the writer counts of itself for the metrics server.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, identity, options};
use prometheus::Registry;
use std::path::Path;
use std::sync::Arc;
use store::log::{Need, Retention};
use store::{LogWriter, SequenceNumber};

/// The value of a metric without labels; of a histogram, how often it was observed.
fn value(registry: &Registry, name: &str) -> f64 {
    let family = registry.gather().into_iter().find(|family| family.name() == name).unwrap();
    let metric = &family.get_metric()[0];
    let counts = metric.get_counter().get_value() + metric.get_gauge().get_value();
    counts + metric.get_histogram().get_sample_count() as f64
}

#[test]
fn retention_and_what_is_read_back_are_counted() {
    let (disk, registry) = (MemoryDisk::default(), Registry::new());
    let open = LogWriter::open_on(Arc::new(disk), Path::new(DIR), &identity(), &options(1), &registry);
    let mut log = open.unwrap().0;
    append_blocks(&mut log, &[5, 9, 16, 20]);
    let reader = log.reader();
    assert_eq!(value(&registry, "mergedistill_log_read_bytes_total"), 0.0);
    reader.entry(SequenceNumber(6)).unwrap();
    let read = value(&registry, "mergedistill_log_read_bytes_total");
    assert_eq!(read, reader.bytes_between(SequenceNumber(5), SequenceNumber(9)) as f64, "its block");
    reader.entry(SequenceNumber(7)).unwrap();
    assert_eq!(value(&registry, "mergedistill_log_read_bytes_total"), read, "it is in the cache");

    let (retention, need) = (Retention { bytes: 1, age: None, held_out: "/state/holdout".into() }, Need::default());
    need.set(SequenceNumber(10), "a test");
    let pass = log.retain(&retention, Some(&need)).unwrap();
    assert_eq!(pass.removed_segments, 2);
    assert_eq!(value(&registry, "mergedistill_log_removed_segments_total"), 2.0);
    assert_eq!(value(&registry, "mergedistill_log_removed_bytes_total"), pass.removed_bytes as f64);
    assert_eq!(value(&registry, "mergedistill_log_held_back_segments"), 1.0);
    assert_eq!(value(&registry, "mergedistill_log_retention_seconds"), 1.0);
    log.retain(&retention, Some(&need)).unwrap();
    assert_eq!(
        value(&registry, "mergedistill_log_retention_seconds"),
        1.0,
        "a pass that removes nothing does not count"
    );
    log.keeps_all();
    assert_eq!(value(&registry, "mergedistill_log_held_back_segments"), 0.0);
    log.retain(&retention, Some(&need)).unwrap();
    assert_eq!(value(&registry, "mergedistill_log_held_back_segments"), 1.0);
    log.retain(&retention, None).unwrap();
    assert_eq!(value(&registry, "mergedistill_log_held_back_segments"), 0.0);
}
