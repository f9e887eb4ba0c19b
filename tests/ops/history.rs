//! `GET /v1/history` has what was trained before a restart, thinned as far as is asked for.

use crate::harness::{Daemon, Scene, configuration, http, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn get(address: &str, query: &str) -> Value {
    let (status, body) = http(address, &format!("/v1/history{query}"), address);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn steps(history: &Value) -> Vec<u64> {
    history["steps"]["step"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap()).collect()
}

/// What has been read, once training has gone on to `step`.
fn history_at(address: &str, step: u64) -> Value {
    until("the history", || {
        let history = get(address, "?points=1000");
        (history["complete"] == json!(true) && steps(&history).last() >= Some(&step)).then_some(history)
    })
}

/// A training that goes on for longer than the test.
fn scene() -> Scene {
    let endless =
        configuration().replace("steps = 12", "steps = 1000000").replace("[queue]", "rounds = 1000000\n[queue]");
    Scene::new(&endless.replace("language = \"en\"\n", "language = \"en\"\nrounds = 1000000\n"))
}

#[test]
fn a_restart_finds_what_was_trained_before_it() {
    let scene = scene();
    assert!(scene.run(&["--until-step", "9"]).status.success());
    let losses: BTreeMap<u64, f64> =
        scene.metrics().iter().filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?))).collect();
    assert_eq!(losses.len(), 9);

    let mut daemon: Daemon = scene.start();
    let address = daemon.address();
    let history = history_at(&address, 20);
    let found = steps(&history);
    assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "each step once, before and after");
    for (step, loss) in losses {
        let drawn = history["steps"]["loss"][step as usize - 1].as_f64().unwrap();
        assert!((drawn - loss).abs() < 1e-4 * loss, "step {step}: {drawn}, {loss}");
    }
    assert_eq!(history["evaluations"]["step"][0], 0);
    let evaluated = &history["evaluations"]["languages"]["en"]["teachers"]["demo-en"]["rdt"];
    assert_eq!(evaluated.as_array().unwrap().len(), history["evaluations"]["step"].as_array().unwrap().len());

    let few = get(&address, "?points=4");
    assert!(steps(&few).len() <= 4 && few["steps"]["steps_per_point"].as_u64() >= Some(4), "{few}");
    let later = get(&address, "?since_step=15&points=1000");
    assert_eq!(steps(&later)[0], 16);
    let (status, body) = http(&address, "/v1/history?points=0", &address);
    assert_eq!((status, body.contains("invalid_query")), (400, true), "{body}");

    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, Some(0));
    let samples = std::fs::read_to_string(scene.path("state/samples.json")).unwrap();
    assert!(serde_json::from_str::<Value>(&samples).unwrap()["recent"].is_array(), "rates are kept for the next start");
}
