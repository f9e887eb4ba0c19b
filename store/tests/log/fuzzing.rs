//! The fuzz targets on their corpus, and on what is close to it, without libFuzzer.

use crate::inputs;
use std::fs;
use std::path::Path;

type Target = fn(&[u8]);

/// Targets by name.
const TARGETS: [(&str, Target); 3] =
    [("segment", inputs::segment), ("block", inputs::block), ("labels", inputs::labels)];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

fn stays_calm(target: &str) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let seeds = inputs::seeds().into_iter().filter(|(of, ..)| *of == target).map(|(.., bytes)| bytes);
    for bytes in corpus(target) {
        run(&bytes);
    }
    for bytes in seeds {
        run(&bytes);
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= [0x01, 0x80, 0xff][at % 3];
            run(&changed);
            run(&bytes[..at]);
        }
    }
}

#[test]
fn segments_of_any_bytes_are_read_or_refused() {
    stays_calm("segment");
}

#[test]
fn blocks_of_any_columns_are_read_or_refused() {
    stays_calm("block");
}

#[test]
fn labels_of_any_bytes_are_read_or_refused() {
    stays_calm("labels");
}

#[test]
#[ignore = "writes the fuzz corpus's beginnings again"]
fn write_seeds() {
    for (target, name, bytes) in inputs::seeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
    }
}
