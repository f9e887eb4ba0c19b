//! Which keys of the configuration change while the daemon runs, and why the others need a restart, or cannot change.

/// What a change of a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It changes at once.
    Live(Part),
    /// It takes effect with a restart, because of this.
    Restart(&'static str),
    /// A run keeps it for life, because of this.
    Kept(&'static str),
}

/// Who is told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The trainer.
    Training,
    /// The trainer, and ingest.
    Alpha,
    /// Whoever looks it up, or has a knob for it.
    Stages,
    /// A corpus appears in the file, or goes.
    Corpus,
    /// How much is logged.
    Log,
}

use Class::{Kept, Live, Restart};

const IDENTITY: &str = "it says what the log is";
const BUILT: &str = "the stages are built with it";
const TRAINER: &str =
    "batches, windows and the end of training are settled when training is opened; the journal notes the change then";
const SHAPE: &str = "the student is built with it";
const STEPS: &str = "every step depends on it";
const PLACE: &str = "the student is put there when training is opened";
const SERVER: &str = "the server is opened with it";
const TEACHER: &str = "the teachers are opened with it";

const CLUSTER: &str = "the connection to the NATS server is opened with it";

/// Every key. `[]` stands for a name.
pub const KEYS: &[(&str, Class)] = &[
    ("run.state_dir", Restart("another folder is another run")),
    ("run.seed", Kept(IDENTITY)),
    ("run.stop_limit_seconds", Restart("the supervisor is started with it")),
    ("run.stuck_seconds", Restart("the watchdog is started with it")),
    ("threads.teachers", Restart("the threads are started with it")),
    ("threads.trainer", Restart("the threads are started with it")),
    ("corpus[]", Live(Part::Corpus)),
    ("sampling.alpha", Live(Part::Alpha)),
    ("teacher", Restart("their order is that of the log's table")),
    ("teacher[]", Restart("a run gets a teacher so, or by `mergedistill ctl teacher add`")),
    ("teacher[].name", Restart(TEACHER)),
    ("teacher[].path", Restart(TEACHER)),
    ("teacher[].languages", Kept(IDENTITY)),
    ("teacher[].device", Restart(TEACHER)),
    ("teacher[].precision", Restart(TEACHER)),
    ("teacher[].labels", Kept(IDENTITY)),
    ("teacher[].labelled_by", Restart(TEACHER)),
    ("teacher[].stall_seconds", Live(Part::Stages)),
    ("teacher[].on_stall", Live(Part::Stages)),
    ("masking.probability", Kept(IDENTITY)),
    ("masking.whole_word", Kept(IDENTITY)),
    ("masking.align_masks", Kept(IDENTITY)),
    ("queue.batch_tokens", Restart(BUILT)),
    ("queue.depth", Restart(BUILT)),
    ("queue.linger_ms", Live(Part::Stages)),
    ("queue.inbox_bytes", Live(Part::Stages)),
    ("quarantine.max_bytes", Live(Part::Stages)),
    ("store.path", Restart("another folder is another log")),
    ("store.top_k", Kept(IDENTITY)),
    ("store.tail_samples", Kept(IDENTITY)),
    ("store.max_sequence_length", Kept(IDENTITY)),
    ("store.precision", Kept(IDENTITY)),
    ("store.keep_text", Restart(BUILT)),
    ("store.segment_bytes", Restart("the log is opened with it")),
    ("store.sync_interval_ms", Live(Part::Stages)),
    ("store.max_backlog_bytes", Live(Part::Stages)),
    ("store.retain_bytes", Live(Part::Stages)),
    ("store.retain_hours", Live(Part::Stages)),
    ("student", Restart("a trainer is started, or ended, with the daemon")),
    ("student.layers", Kept(SHAPE)),
    ("student.hidden_size", Kept(SHAPE)),
    ("student.heads", Kept(SHAPE)),
    ("student.intermediate_size", Kept(SHAPE)),
    ("student.embedding_size", Kept(SHAPE)),
    ("student.max_sequence_length", Kept(SHAPE)),
    ("student.dropout", Kept(STEPS)),
    ("student.initializer_range", Kept(STEPS)),
    ("student.init", Kept(STEPS)),
    ("student.device", Restart(PLACE)),
    ("student.precision", Restart(PLACE)),
    ("train.steps", Restart(TRAINER)),
    ("train.schedule", Restart(TRAINER)),
    ("train.batch_examples", Restart(TRAINER)),
    ("train.micro_batch_tokens", Restart(TRAINER)),
    ("train.learning_rate", Live(Part::Training)),
    ("train.warmup_steps", Live(Part::Training)),
    ("train.weight_decay", Live(Part::Training)),
    ("train.clip_norm", Live(Part::Training)),
    ("train.lambda_start", Live(Part::Training)),
    ("train.lambda_end", Live(Part::Training)),
    ("train.lambda_schedule", Live(Part::Training)),
    ("train.lambda_step_at", Live(Part::Training)),
    ("train.lambda_steps", Live(Part::Training)),
    ("train.lambda_floor", Live(Part::Training)),
    ("train.copies", Restart(TRAINER)),
    ("train.best_by", Restart(TRAINER)),
    ("train.copy_weight", Restart(TRAINER)),
    ("train.loss_norm", Restart(TRAINER)),
    ("train.kd_target", Restart(TRAINER)),
    ("train.kd_temperature", Restart(TRAINER)),
    ("train.kd_target_later", Restart(TRAINER)),
    ("train.kd_temperature_later", Restart(TRAINER)),
    ("train.kd_target_later_from_step", Restart(TRAINER)),
    ("train.kd_target_blend_steps", Restart(TRAINER)),
    ("train.shuffle_examples", Restart(TRAINER)),
    ("train.max_passes", Restart(TRAINER)),
    ("train.when_short", Restart(TRAINER)),
    ("train.checkpoint_every_steps", Live(Part::Training)),
    ("train.keep_checkpoints", Live(Part::Training)),
    ("evaluate.holdout_fraction", Kept(IDENTITY)),
    ("evaluate.every_steps", Live(Part::Training)),
    ("evaluate.max_examples", Live(Part::Training)),
    ("evaluate.files", Restart("text that no teacher has seen is read before the rest")),
    ("cluster", Restart(CLUSTER)),
    ("cluster.url", Restart(CLUSTER)),
    ("cluster.run", Restart(CLUSTER)),
    ("cluster.user", Restart(CLUSTER)),
    ("cluster.password_file", Restart(CLUSTER)),
    ("cluster.credentials", Restart(CLUSTER)),
    ("cluster.tls_ca", Restart(CLUSTER)),
    ("cluster.tls_certificate", Restart(CLUSTER)),
    ("cluster.tls_key", Restart(CLUSTER)),
    ("cluster.in_flight", Restart(CLUSTER)),
    ("cluster.attempts", Restart(CLUSTER)),
    ("cluster.stream_bytes", Restart(CLUSTER)),
    ("cluster.replicas", Restart(CLUSTER)),
    ("cluster.publish", Restart(CLUSTER)),
    ("cluster.log_bytes", Restart(CLUSTER)),
    ("cluster.follow", Restart(CLUSTER)),
    ("ops.http", Restart(SERVER)),
    ("ops.socket", Restart(SERVER)),
    ("ops.token_file", Restart(SERVER)),
    ("ops.control", Restart(SERVER)),
    ("ops.tensorboard", Restart("training is opened with it")),
    ("ops.log", Live(Part::Log)),
];

/// The class of a key; one that is not in the table needs a restart.
pub fn class_of(key: &str) -> Class {
    let form = form_of(key);
    let found = KEYS.iter().find(|(known, _)| *known == form);
    found.map_or(Restart(BUILT), |(_, class)| *class)
}

/// A key with its name left out: `teacher[english].path` is `teacher[].path`.
pub fn form_of(key: &str) -> String {
    match (key.find('['), key.rfind(']')) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &key[..=begin], &key[end..]),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use crate::configuration::Configuration;
    use crate::live::reload::difference::{Difference, keys_of, with};
    use crate::training::settings;
    use std::collections::BTreeSet;
    use std::path::Path;
    use toml::Value;

    /// A file that gives every optional key.
    const FULL: &str = r#"
        [[teacher]]
        name = "a.b]"
        path = "teacher"
        languages = ["en"]
        [[corpus]]
        name = "c"
        language = "en"
        path = "*.txt"
        [store]
        max_sequence_length = 64
        [student]
        [train]
        steps = 5
        schedule = "trunk"
        lambda_schedule = "step"
        kd_target_later = "ghost"
        kd_target_later_from_step = 3
        [[evaluate.files]]
        language = "en"
        path = "fresh.txt"
        [cluster]
        run = "full"
        user = "coordinator"
        password_file = "password"
        tls_ca = "ca.pem"
        tls_certificate = "daemon.pem"
        tls_key = "daemon-key.pem"
        [ops]
        token_file = "token"
    "#;

    #[test]
    fn every_key_is_in_exactly_one_class() {
        // Credentials stand for user and password.
        let credentials = FULL.replace("user = \"coordinator\"", "credentials = \"run.creds\"");
        let credentials = credentials.replace("password_file = \"password\"", "");
        let forms: BTreeSet<String> = [FULL, &credentials]
            .iter()
            .flat_map(|text| keys_of(&Configuration::parse(text, Path::new("/")).unwrap()).unwrap())
            .map(|key| form_of(&key))
            .collect();
        // Not keys that have a value: the order of tables, and tables that appear or go.
        let known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        let tables = ["teacher", "teacher[]", "student", "cluster"];
        for key in &forms {
            assert_eq!(known.iter().filter(|known| *known == key).count(), 1, "{key}: put it into the table of keys");
        }
        for key in known {
            assert!(forms.contains(key) || tables.contains(&key), "{key} is no key of the configuration");
        }
    }

    /// Another value that a key may have.
    fn other(value: &Value) -> Value {
        let words = [("all", "best"), ("position", "character"), ("equal", "shared"), ("batch", "language")];
        let mut words = words.into_iter().chain([
            ("renormalised", "ghost"),
            ("wait", "replay"),
            ("trunk", "linear"),
            ("step", "cosine"),
            ("ghost", "gold-residual"),
        ]);
        match value {
            Value::Integer(number) => Value::Integer(number + 1),
            Value::Float(number) => Value::Float(if *number > 0.5 { number / 2.0 } else { number + 0.125 }),
            Value::String(word) => words.find(|(is, _)| is == word).unwrap().1.into(),
            value => panic!("{value}"),
        }
    }

    #[test]
    fn the_trainer_takes_what_changes_live_and_nothing_else() {
        let base = Configuration::parse(FULL, Path::new("/")).unwrap();
        let table = toml::Table::try_from(&base).unwrap();
        for (key, class) in KEYS {
            let (section, name) = key.split_once('.').unwrap_or((key, ""));
            if !["train", "sampling"].contains(&section) {
                continue;
            }
            let to = Some(other(&table[section][name]));
            let changed = match *key {
                // Only a trunk has λ's floor.
                "train.schedule" => {
                    let linear = FULL.replace("schedule = \"trunk\"", "");
                    Configuration::parse(&linear, Path::new("/")).unwrap()
                }
                // And only a step has a place.
                "train.lambda_schedule" => {
                    let cosine = FULL.replace("= \"step\"", "= \"cosine\"");
                    Configuration::parse(&cosine, Path::new("/")).unwrap()
                }
                _ => with(&base, &[&Difference { key: (*key).to_owned(), from: None, to }]).unwrap(),
            };
            let (before, after) = (settings(&base).0, settings(&changed).0);
            assert_ne!(before, after, "{key}");
            assert_eq!(before.can_become(&after), matches!(class, Live(_)), "{key}");
        }
    }

    /// The reference marks what changes live with ↻.
    #[test]
    fn the_reference_says_what_changes_live() {
        let reference = include_str!("../../../CONFIGURATION.md");
        let (mut section, mut seen) = (String::new(), BTreeSet::new());
        for block in reference.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            for line in block.lines() {
                if let Some(table) = line.strip_prefix('[') {
                    let of_list = if table.starts_with('[') { "[]" } else { "" };
                    section = format!("{}{of_list}", table.trim_matches(['[', ']']));
                    continue;
                }
                let Some((key, rest)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with(['#', ' '])) else {
                    continue;
                };
                let key = format!("{section}.{key}");
                let Some((_, class)) = KEYS.iter().find(|(known, _)| *known == key) else { continue };
                assert_eq!(rest.contains("# ↻"), matches!(class, Live(_)), "{key}");
                seen.insert(key);
            }
        }
        let is_seen =
            |(key, class): &&(&str, Class)| !matches!(class, Live(_)) || *key == "corpus[]" || seen.contains(*key);
        assert_eq!(KEYS.iter().find(|entry| !is_seen(entry)), None, "the reference does not have it");
    }

    #[test]
    fn names_may_hold_anything() {
        assert_eq!(form_of("teacher[a.b]].on_stall"), "teacher[].on_stall");
        assert_eq!(form_of("store.path"), "store.path");
        assert_eq!(class_of("teacher[x].on_stall"), Live(Part::Stages));
        assert_eq!(class_of("something.new"), Restart(BUILT));
    }
}
