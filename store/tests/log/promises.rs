//! The table of promises in the crate's documentation names tests that exist.

use std::fs;
use std::path::Path;

/// The names in the second column of the table, which are in backquotes.
fn named() -> Vec<String> {
    let documentation = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rows = documentation.lines().filter_map(|line| line.strip_prefix("//! | ")).skip(2);
    let tests = rows.map(|row| row.split(" | ").nth(1).unwrap_or_else(|| panic!("no second column: {row}")).to_owned());
    tests.flat_map(|tests| tests.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Whether a test `module::name` is in `tests/log/module.rs`, or a file of that name is in the repository.
fn exists(test: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some((module, name)) = test.split_once("::") else { return root.join("..").join(test).is_file() };
    let Ok(source) = fs::read_to_string(root.join("tests/log").join(module).with_extension("rs")) else { return false };
    let declared = fs::read_to_string(root.join("tests/log/main.rs")).unwrap();
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")));
    let is_test = at.is_some_and(|at| lines[..at].iter().rev().take(3).any(|line| *line == "#[test]"));
    is_test && declared.contains(&format!("mod {module};"))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let named = named();
    assert!(named.len() > 30, "{} tests in the table", named.len());
    let missing: Vec<_> = named.iter().filter(|test| !exists(test)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
    assert!(!exists("crash::nothing") && !exists("tests/nothing"));
}
