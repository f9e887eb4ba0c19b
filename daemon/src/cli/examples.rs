//! An example or more of every command: in its help and in its man page. A test parses each.

use clap::Command;
use std::fmt::Write as _;

/// Examples by command: what each does, and what is written after the program's name.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("Try it, without network and GPU:", "demo"),
            ("What is wrong with a configuration, and what its run comes to:", "check --config merge.toml --plan"),
            ("Run it, and watch it from another terminal:", "run --config merge.toml"),
            ("", "ctl watch"),
        ],
    ),
    ("demo", &[("", "demo"), ("A better student, in a folder of its own:", "demo --steps 1000 --state-dir /tmp/demo")]),
    (
        "run",
        &[
            ("", "run --config /etc/mergedistill/mergedistill.toml"),
            ("Stop after step 5000; the same command without it goes on:", "run --config merge.toml --until-step 5000"),
        ],
    ),
    (
        "worker",
        &[
            ("", "worker --url nats://coordinator:4222 --run merge-1 --teacher models/english"),
            (
                "On a GPU, under the name that the run has for it:",
                "worker --url nats://coordinator:4222 --run merge-1 --teacher /models/bert-base-cased --name english --device cuda:0",
            ),
        ],
    ),
    (
        "check",
        &[
            ("Every problem at once, or the configuration with its defaults:", "check --config merge.toml"),
            ("Days, disk, memory, and what limits the run:", "check --config merge.toml --plan --seconds 10"),
        ],
    ),
    (
        "ctl",
        &[
            ("", "ctl status"),
            ("Another socket than the default:", "ctl --socket /srv/merge/state/control.sock status"),
            ("For scripts:", "ctl status --json"),
        ],
    ),
    (
        "ctl status",
        &[
            ("", "ctl status"),
            ("With colours into a pager:", "--color always ctl status"),
            ("For scripts:", "ctl status --json"),
        ],
    ),
    ("ctl watch", &[("", "ctl watch"), ("A JSON document per event, into a pipe:", "ctl watch --json")]),
    ("ctl pause", &[("Everything:", "ctl pause"), ("Training alone; labelling goes on:", "ctl pause trainer")]),
    ("ctl resume", &[("", "ctl resume"), ("", "ctl resume trainer")]),
    ("ctl drain", &[("Before the teachers' machine goes down:", "ctl drain"), ("And on:", "ctl resume ingest")]),
    ("ctl operations", &[("", "ctl operations"), ("One of them, for scripts:", "ctl operations 19ac0c41d2e-7 --json")]),
    ("ctl segments", &[("", "ctl segments"), ("", "ctl segments --json")]),
    ("ctl configuration", &[("", "ctl configuration"), ("", "ctl configuration --json")]),
    ("ctl checkpoint", &[("", "ctl checkpoint")]),
    (
        "ctl export",
        &[
            ("The student as it is, for transformers:", "ctl export --out students/today"),
            ("For German alone:", "ctl export --out students/today-de --languages de"),
        ],
    ),
    (
        "ctl release",
        &[
            (
                "Cool down over 5000 steps beside the training that goes on:",
                "ctl release --steps 5000 --out students/may",
            ),
            ("", "ctl release --cancel"),
        ],
    ),
    ("ctl reload", &[("", "ctl reload"), ("What has changed, for scripts:", "ctl reload --json")]),
    (
        "ctl log-level",
        &[
            ("", "ctl log-level"),
            ("All that the store says, and little of the rest:", "ctl log-level warn,store=debug"),
        ],
    ),
    (
        "ctl retention",
        &[("", "ctl retention"), ("At most 100 GB and a week:", "ctl retention --bytes 100000000000 --hours 168")],
    ),
    (
        "ctl replay",
        &[
            ("What was that spike?", "ctl replay --step 4120"),
            ("Of a run that has stopped, with texts:", "ctl replay --step 4120 --state-dir state --top 20 --text"),
            ("How far back it has to go:", "ctl replay --step 4120 --from-checkpoint"),
        ],
    ),
    (
        "ctl push",
        &[
            ("A JSON object a line:", "ctl push --corpus news articles.jsonl"),
            (
                "Text from standard input; again with the same key adds nothing:",
                "ctl push --corpus news --key 2026-05-01 -",
            ),
        ],
    ),
    ("ctl quarantine", &[("", "ctl quarantine list"), ("", "ctl quarantine retry --all --corpus wiki")]),
    ("ctl quarantine list", &[("", "ctl quarantine list --corpus wiki"), ("", "ctl quarantine list --json")]),
    ("ctl quarantine show", &[("", "ctl quarantine show 4f1d20b7c2a94e0d")]),
    (
        "ctl quarantine retry",
        &[("", "ctl quarantine retry 4f1d20b7c2a94e0d"), ("", "ctl quarantine retry --all --corpus wiki")],
    ),
    ("ctl corpus", &[("", "ctl corpus list"), ("", "ctl corpus pause wiki")]),
    ("ctl corpus list", &[("", "ctl corpus list")]),
    ("ctl corpus pause", &[("", "ctl corpus pause wiki"), ("One language of it:", "ctl corpus pause wiki:de")]),
    ("ctl corpus resume", &[("", "ctl corpus resume wiki:de")]),
    (
        "ctl corpus share",
        &[
            ("A quarter of the draws:", "ctl corpus share de 0.25"),
            ("As many as follow from its characters again:", "ctl corpus share de --clear"),
        ],
    ),
    ("ctl corpus add", &[("A file with one [[corpus]] table:", "ctl corpus add wiki.toml")]),
    ("ctl corpus remove", &[("", "ctl corpus remove wiki")]),
    ("ctl teacher", &[("", "ctl teacher list"), ("", "ctl teacher add fi.toml")]),
    ("ctl teacher list", &[("", "ctl teacher list")]),
    ("ctl teacher pause", &[("", "ctl teacher pause fi")]),
    ("ctl teacher resume", &[("", "ctl teacher resume fi")]),
    ("ctl teacher add", &[("A file with one [[teacher]] table:", "ctl teacher add fi.toml")]),
    ("ctl shutdown", &[("", "ctl shutdown")]),
    ("corpus", &[("", "corpus remove --state-dir state wiki")]),
    ("corpus remove", &[("", "corpus remove --state-dir state wiki")]),
    ("corpus forget", &[("", "corpus forget --config merge.toml news 2026/11/part-17.txt")]),
    ("corpus recognise", &[("", "corpus recognise --config merge.toml app")]),
    ("log", &[("", "log stat state/log"), ("", "log verify state/log")]),
    ("log stat", &[("", "log stat state/log"), ("", "log stat state/log --json")]),
    ("log verify", &[("", "log verify state/log --threads 8")]),
    ("log dump", &[("Five records, a JSON document each:", "log dump state/log --from 1000 --count 5 --json")]),
    (
        "log copy",
        &[
            ("Half the bytes, for other students:", "log copy state/log small --precision compact"),
            ("One teacher's labels of one language:", "log copy state/log en-only --teacher en --language en"),
        ],
    ),
    ("log merge", &[("", "log merge both first/log second/log")]),
    (
        "log audit",
        &[
            ("", "log audit state/log --teacher teachers/en"),
            (
                "Only those that a GPU has made in bfloat16:",
                "log audit state/log --teacher teachers/en --computed-in bfloat16",
            ),
        ],
    ),
    ("log relabel", &[("", "log relabel state/log --out with-fi --teacher teachers/fi --languages fi")]),
    ("log export", &[("", "log export state/log --parquet labels.parquet --language de")]),
    (
        "log publish",
        &[
            ("", "log publish state/log --url nats://coordinator:4222 --run merge-1"),
            ("Once, in three copies:", "log publish state/log --run merge-1 --once --replicas 3"),
        ],
    ),
    ("log follow", &[("", "log follow copy/log --url nats://coordinator:4222 --run merge-1")]),
    ("vocab", &[("", "vocab union --out vocab teachers/en teachers/de")]),
    ("vocab union", &[("", "vocab union --out vocab teachers/en teachers/de")]),
    (
        "vocab learn",
        &[
            ("From files of text:", "vocab learn --size 8000 --out tokenizers/it text/it.txt"),
            (
                "From a configuration's corpora of two languages:",
                "vocab learn --size 30000 --uncased --out tokenizers/en-it --config merge.toml --language en --language it",
            ),
        ],
    ),
    (
        "export",
        &[
            ("", "export --state-dir state --out student"),
            ("Smaller, for two languages:", "export --state-dir state --out student-de-fr --languages de,fr"),
            ("A release:", "export --state-dir state/releases/step-5000 --out student"),
        ],
    ),
    (
        "finetune",
        &[
            (
                "Parts of speech, tested in two languages:",
                "finetune --model student --task token --train en.train.tsv --dev en.dev.tsv --test en=en.test.tsv de=de.test.tsv",
            ),
            (
                "With a teacher's tokenizer in the student's ids; a fixed tenth each to choose the epoch and to score:",
                "finetune --model student --tokenizer student/tokenizers/en --task token --train en.tsv --split 80/10/10 --json",
            ),
            (
                "Models, tasks, languages and seeds of a file, as tables with RDT:",
                "finetune --suite tasks.toml --out results",
            ),
        ],
    ),
    (
        "evaluate",
        &[
            ("", "evaluate --config merge.toml"),
            ("", "evaluate --config merge.toml --json --documents documents.jsonl"),
        ],
    ),
    ("bench", &[("", "bench label --teacher teachers/en --text text/en.txt --threads 2")]),
    ("bench label", &[("", "bench label --teacher teachers/en --text text/en.txt --threads 2")]),
    (
        "bench train",
        &[(
            "BERT base, 99,112 tokens:",
            "bench train --vocab 99112 --embedding 768 --hidden 768 --layers 12 --heads 12",
        )],
    ),
    ("bench both", &[("", "bench both --teacher teachers/en --text text/en.txt --label-threads 1 --train-threads 1")]),
    ("bench ingest", &[("", "bench ingest --teacher teachers/en --text text/en.txt text/de.txt")]),
    ("bench store", &[("", "bench store --dir /srv --precision compact")]),
    ("generate", &[("", "generate man --out man"), ("", "generate completions --out completions")]),
];

/// Adds its examples to the help of every command below `command`, and to its own.
pub(super) fn with_examples(command: Command) -> Command {
    add(command, "")
}

/// What each example of a command does, and the command line. `path` is the command without the program's name.
pub fn examples(path: &str) -> impl Iterator<Item = (&'static str, String)> {
    let of_path = EXAMPLES.iter().filter(move |(known, _)| *known == path);
    of_path.flat_map(|(_, examples)| examples.iter()).map(|(what, line)| (*what, format!("mergedistill {line}")))
}

fn add(command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    let command = names.into_iter().fold(command, |command, name| {
        let path = format!("{path} {name}");
        command.mut_subcommand(name, |inner| add(inner, path.trim_start()))
    });
    let header = command.get_styles().get_header();
    let mut help = format!("{header}Examples:{header:#}");
    for (what, line) in examples(path) {
        // Writing to a string cannot fail.
        let _ = if what.is_empty() { Ok(()) } else { write!(help, "\n  {what}") };
        let _ = write!(help, "\n    {line}");
    }
    command.after_help(help)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::super::Cli;
    use super::*;
    use std::ffi::OsString;

    fn paths(command: &Command, path: &str, all: &mut Vec<String>) {
        all.push(path.to_owned());
        for inner in command.get_subcommands() {
            paths(inner, format!("{path} {}", inner.get_name()).trim_start(), all);
        }
    }

    #[test]
    fn every_command_has_examples_and_each_is_one_of_it() {
        let mut all = Vec::new();
        paths(&Cli::definition(), "", &mut all);
        for path in &all {
            let lines: Vec<String> = examples(path).map(|(_, line)| line).collect();
            assert!(!lines.is_empty(), "`{path}` has no example: add one to EXAMPLES");
            let mut own = 0;
            for line in lines {
                let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
                if let Err(error) = Cli::read(words.iter().cloned()) {
                    panic!("{line}: {error}");
                }
                let mut matches = &Cli::definition().get_matches_from(words);
                let mut reached = String::new();
                while let Some((name, inner)) = matches.subcommand() {
                    reached = format!("{reached} {name}").trim_start().to_owned();
                    matches = inner;
                }
                own += usize::from(reached.starts_with(path.as_str()));
            }
            assert!(own > 0, "the examples of `{path}` are all of other commands");
        }
        for (path, _) in EXAMPLES {
            assert!(all.iter().any(|known| known == path), "there is no command `{path}`");
        }
    }

    /// Commands that print nothing on standard output but help.
    const SILENT: [&str; 5] = ["run", "worker", "log publish", "log follow", "generate"];

    #[test]
    fn what_prints_can_print_json() {
        let check = |command: &Command, path: &str| {
            let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
            assert!(has_json || SILENT.contains(&path), "`{path}` has no --json");
        };
        fn walk(command: &Command, path: &str, check: &dyn Fn(&Command, &str)) {
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                walk(inner, format!("{path} {}", inner.get_name()).trim_start(), check);
            }
            if !command.has_subcommands() {
                check(command, path);
            }
        }
        let mut definition = Cli::definition();
        definition.build();
        walk(&definition, "", &check);
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::definition().debug_assert();
    }

    #[test]
    fn help_shows_examples() {
        let mut definition = Cli::definition();
        let export = definition.find_subcommand_mut("export").unwrap();
        assert!(export.render_help().to_string().contains("mergedistill export --state-dir state --out student"));
    }
}
