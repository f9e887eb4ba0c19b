//! SIGKILL at many moments of one run: nothing is lost, nothing is there twice, and the student is the same, bit for
//! bit, as that of a run without interruption.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, checkpoint, configuration};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A phase, and what the log says when it begins and when it is over.
const PHASES: [(&str, &str, &str); 3] = [
    ("appending", "append first=", "made durable"),
    ("checkpointing", "checkpoint begins", "checkpoint written"),
    ("evaluating", "evaluation begins", "evaluation done"),
];

/// Kills that hit their phase.
const KILLS: usize = 25;

/// Kills at most: some come after their phase.
const ROUNDS: usize = 60;

const STEPS: u64 = 120;

#[test]
fn sigkill_at_any_moment_changes_nothing() {
    let configuration = configuration()
        .replace("steps = 12", &format!("steps = {STEPS}"))
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 2")
        .replace("every_steps = 6", "every_steps = 3")
        .replace("batch_tokens = 512", "batch_tokens = 256")
        // Labelled once and for all, the text would be through long before the last kill.
        .replace("language = \"en\"\npath", "language = \"en\"\nrounds = 400\npath")
        .replace("language = \"de\"\npath", "language = \"de\"\nrounds = 400\npath")
        .replace("[train]", "[store]\nmax_backlog_bytes = 1048576\n[train]");
    let whole = Scene::new(&configuration);
    assert!(whole.run(&[]).status.success());

    let killed = Scene::new(&configuration);
    let mut hits = [0_usize; PHASES.len()];
    for round in 0..ROUNDS {
        if hits.iter().sum::<usize>() >= KILLS && hits.iter().all(|&count| count >= 5) {
            break;
        }
        let phase = round % PHASES.len();
        let Some(daemon) = kill_during(&killed, phase, round) else { break };
        let (code, log) = daemon.finish();
        assert_eq!(code, None, "round {round} ended by itself: {log}");
        let (name, begins, over) = PHASES[phase];
        let hit = log.rsplit_once(begins).is_some_and(|(_, rest)| !rest.contains(over));
        println!("round {round}: killed {} {name}", if hit { "while" } else { "after" });
        hits[phase] += usize::from(hit);
        killed.log_lines("verify");
    }
    assert!(hits.iter().all(|&count| count >= 5) && hits.iter().sum::<usize>() >= KILLS, "too few kills: {hits:?}");

    let output = killed.run(&[]);
    assert!(output.status.success(), "{}", harness::text(&output.stderr));
    assert!(checkpoint(&whole, STEPS) == checkpoint(&killed, STEPS), "the students differ");
    compare_logs(&whole, &killed);
    let steps: Vec<Value> = killed
        .metrics()
        .into_iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].clone())
        .collect();
    assert_eq!(steps, (1..=STEPS).map(Value::from).collect::<Vec<_>>(), "each step is in metrics.jsonl once");
}

/// Starts the daemon and kills it within the phase; `None` if it finished before the phase came.
fn kill_during(scene: &Scene, phase: usize, round: usize) -> Option<Daemon> {
    let mut daemon = scene.start();
    // Appending begins at once after a start; later appends are as interesting as the first.
    let occurrence = if phase == 0 { 1 + round % 4 } else { 1 };
    for _ in 0..occurrence {
        daemon.wait_for(PHASES[phase].1)?;
    }
    // Somewhere inside the phase: the moment differs from round to round.
    let moment = Instant::now() + Duration::from_micros((round as u64 * 7919) % 3000);
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    daemon.signal("KILL");
    Some(daemon)
}

/// As far as both go, the logs are the same in every bit of every label; and no key is there twice.
fn compare_logs(whole: &Scene, killed: &Scene) {
    let (whole, killed) = (whole.log_lines("dump"), killed.log_lines("dump"));
    for (one, other) in whole.iter().zip(&killed) {
        assert!(one == other, "the logs differ at {} / {}", one["seq"], other["seq"]);
    }
    let mut keys = BTreeSet::new();
    for record in &killed {
        let key = ["source", "document", "span", "round"].map(|field| record[field].to_string());
        assert!(keys.insert(key), "twice in the log: {record}");
    }
}
