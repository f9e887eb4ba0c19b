//! A disk that is full: nothing is written, and the log goes on when there is room.

use crate::memory_disk::MemoryDisk;
use crate::sample::{DIR, append_blocks, block, check_content, durable, identity, options, read};
use prometheus::Registry;
use std::path::Path;
use std::sync::Arc;
use store::log::{HeldOutLog, Retention};
use store::{LogWriter, SequenceNumber, StoreError};

#[test]
fn without_room_nothing_is_written_and_the_log_goes_on() {
    // It rolls; and it grows beyond what was reserved ahead.
    for segment_bytes in [1, 8000] {
        let disk = MemoryDisk::default();
        let registry = Registry::new();
        let options = options(segment_bytes);
        let mut log =
            LogWriter::open_on(Arc::new(disk.clone()), Path::new(DIR), &identity(), &options, &registry).unwrap().0;
        let waiting = || {
            let families = registry.gather();
            let family = families.iter().find(|family| family.name() == "mergedistill_log_waiting_for_room").unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        log.append(&block(0..5)).unwrap();
        let before = disk.files(Path::new(DIR));
        disk.leave_room(Some(50));
        for _ in 0..3 {
            let error = log.append(&block(5..9)).unwrap_err();
            assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
            assert_eq!((waiting(), log.next()), (1.0, SequenceNumber(5)));
            let mut after = disk.files(Path::new(DIR));
            after.retain(|path, _| path.extension().is_some_and(|end| end == "seg" || end == "tmp"));
            assert!(after.iter().all(|(path, content)| before.get(path) == Some(content)), "{:?}", after.keys());
        }
        assert_eq!(log.sync().unwrap(), durable(5), "what fitted becomes durable");
        disk.leave_room(None);
        append_blocks(&mut log, &[9, 16]);
        assert_eq!(waiting(), 0.0);
        log.seal().unwrap();
        assert_eq!(check_content(&read(&disk).unwrap()), 16);
    }
}

/// On a real file system: room is reserved ahead, the file is as long as what it holds, and nothing stays reserved.
#[test]
fn room_is_reserved_and_given_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let (log, held_out) = (folder.path().join("log"), folder.path().join("holdout"));
    let mut writer = LogWriter::open(&log, &identity(), &options(64 << 20), &Registry::new()).unwrap().0;
    append_blocks(&mut writer, &[5]);
    let file = log.join("00000000000000000000.seg");
    let size = |file: &Path| std::fs::metadata(file).map(|data| (data.len(), data.blocks() * 512)).unwrap();
    let (bytes, _) = size(&file);
    assert!(bytes < 64 << 10, "the length is that of the content");
    writer.seal().unwrap();
    let (bytes, stored) = size(&file);
    assert!(stored <= bytes.next_multiple_of(64 << 10), "{stored} bytes are taken by {bytes}");
    let mut writer = LogWriter::open(&log, &identity(), &options(1), &Registry::new()).unwrap().0;
    append_blocks(&mut writer, &[9, 16]);
    let keep = Retention { bytes: 1, age: None, held_out: held_out.clone() };
    assert_eq!(writer.retain(&keep, None).unwrap().removed_segments, 2);
    assert!(!file.exists());
    let (bytes, stored) = size(&held_out.join("00000000000000000000.seg"));
    assert!(stored <= bytes.next_multiple_of(64 << 10), "{stored} bytes are taken by {bytes}");
    assert!(HeldOutLog::open(&held_out).unwrap().is_some());
    assert!(HeldOutLog::open(&folder.path().join("none")).unwrap().is_none());
}
