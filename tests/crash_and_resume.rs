//! SIGKILL at many moments of one run: nothing is lost, nothing is there twice, and the student is the same, bit for
//! bit, as that of a run without interruption.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{Daemon, Scene, checkpoint, configuration};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What the log says when a phase begins.
const PHASES: [(&str, &str); 3] =
    [("appending", "append first="), ("checkpointing", "checkpoint begins"), ("evaluating", "evaluation begins")];

const KILLS: usize = 25;

#[test]
fn sigkill_at_any_moment_changes_nothing() {
    let configuration = configuration()
        .replace("steps = 12", "steps = 60")
        .replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 2")
        .replace("every_steps = 6", "every_steps = 3")
        .replace("batch_tokens = 512", "batch_tokens = 256");
    let whole = Scene::new(&configuration);
    assert!(whole.run(&[]).status.success());

    let killed = Scene::new(&configuration);
    let mut kills = [0_usize; PHASES.len()];
    for round in 0..KILLS {
        let phase = round % PHASES.len();
        let Some(daemon) = kill_during(&killed, phase, round) else { break };
        kills[phase] += 1;
        let (code, log) = daemon.finish();
        assert_eq!(code, None, "round {round} ended by itself: {log}");
        println!("round {round}: killed while {}", PHASES[phase].0);
        killed.log_lines("verify");
    }
    assert!(kills.iter().all(|&count| count >= 5) && kills.iter().sum::<usize>() == KILLS, "too few kills: {kills:?}");

    let output = killed.run(&[]);
    assert!(output.status.success(), "{}", harness::text(&output.stderr));
    assert!(checkpoint(&whole, 60) == checkpoint(&killed, 60), "the students differ");
    compare_logs(&whole, &killed);
    let steps: Vec<Value> = killed
        .metrics()
        .into_iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].clone())
        .collect();
    assert_eq!(steps, (1..=60).map(Value::from).collect::<Vec<_>>(), "each step is in metrics.jsonl once");
}

/// Starts the daemon and kills it within the phase; `None` if it finished before the phase came.
fn kill_during(scene: &Scene, phase: usize, round: usize) -> Option<Daemon> {
    let mut daemon = scene.start();
    // Appending begins at once after a start; later appends are as interesting as the first.
    let occurrence = if phase == 0 { 1 + round % 4 } else { 1 };
    for _ in 0..occurrence {
        daemon.wait_for(PHASES[phase].1)?;
    }
    // Somewhere inside the phase: the moment differs from round to round, over about the time that a phase takes.
    let moment = Instant::now() + Duration::from_micros((round as u64 * 7919) % 6000);
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
