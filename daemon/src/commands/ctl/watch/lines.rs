//! A line per event, for pipes and for the list in the view.

use crate::commands::ctl::release::release_line;
use crate::commands::ctl::text::{bytes, count, journal_time};
use crate::commands::{print_json_line, print_line};
use crate::failure::Failure;
use crate::visible::visible;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ops::DaemonEvent;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;

/// Prints each event when it happens, until the daemon stops.
pub(super) fn print(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let zone = TimeZone::system();
    let mut failure = None;
    ops::follow(socket, |event| {
        let now = Timestamp::now();
        let printed = if as_json {
            let at = now.as_second();
            print_json_line(&json!({"at_unix_seconds": at, "event": event.name, "data": event.data}))
        } else {
            print_line(&format!("{} {}", journal_time(now.as_second() as f64, &zone), visible(&line(&event))))
        };
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(()), Err)
}

/// What happened, in a line.
pub(super) fn line(event: &DaemonEvent) -> String {
    let data = &event.data;
    let number = |key: &str| data[key].as_f64().unwrap_or(0.0);
    match event.name.as_str() {
        "step" => {
            let skipped = if data["skipped"] == json!(true) { ", skipped: it is not finite" } else { "" };
            format!(
                "step {}: loss {:.3}, top-1 {:.3}, λ {:.2}, gradient norm {:.2}, {} tokens in {:.2} s{skipped}",
                count(number("step")),
                number("loss"),
                number("top1"),
                number("lambda"),
                number("grad_norm"),
                count(number("tokens")),
                number("seconds"),
            )
        }
        "evaluation" => format!("evaluation at step {}: {}", count(number("step")), scores(data)),
        "checkpoint" => {
            format!("checkpoint of step {}: {}", count(number("step")), data["path"].as_str().unwrap_or("?"))
        }
        "waiting" => format!("training waits for labelled text of `{}`", data["language"].as_str().unwrap_or("?")),
        "resumed" => format!("training goes on at step {}", count(number("step"))),
        "release" => format!("release {}", release_line(data)),
        "missed" => format!("{} events came too fast to be shown", count(number("missed"))),
        name => format!("{name} {}", shortened(&data.to_string())),
    }
}

/// Each language's accuracy, and how it stands to its best teacher's.
fn scores(evaluation: &Value) -> String {
    let languages = evaluation["languages"].as_object().into_iter().flatten();
    let score = |(language, scores): (&String, &Value)| {
        let rdts = scores["teachers"].as_object().into_iter().flatten().filter_map(|(_, pair)| pair["rdt"].as_f64());
        let rdt = rdts.reduce(f64::min).map_or_else(String::new, |rdt| format!(" (RDT {rdt:+.1} %)"));
        format!("{language} top-1 {:.3}{rdt}", scores["student_top1"].as_f64().unwrap_or(0.0))
    };
    languages.map(score).collect::<Vec<_>>().join(", ")
}

fn shortened(text: &str) -> String {
    const CHARACTERS: usize = 200;
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}… ({})", &text[..end], bytes(text.len() as f64)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, data: Value, expected: &str) {
        assert_eq!(line(&DaemonEvent { name: name.to_owned(), data }), expected);
    }

    #[test]
    fn events_as_lines() {
        let step = json!({"step": 1077, "loss": 5.1238, "top1": 0.05, "lambda": 0.81, "grad_norm": 0.39, "tokens": 3114,
            "seconds": 0.3, "skipped": false});
        let expected = "step 1,077: loss 5.124, top-1 0.050, λ 0.81, gradient norm 0.39, 3,114 tokens in 0.30 s";
        check("step", step, expected);
        let evaluation = json!({"step": 125, "languages": {"en": {"student_top1": 0.1, "teachers": {
            "a": {"rdt": -50.0}, "b": {"rdt": -60.0}}}, "fr": {"student_top1": 0.2, "teachers": {"c": {"rdt": null}}}}});
        check("evaluation", evaluation, "evaluation at step 125: en top-1 0.100 (RDT -60.0 %), fr top-1 0.200");
        check("checkpoint", json!({"step": 5, "path": "/s/step-5"}), "checkpoint of step 5: /s/step-5");
        check("waiting", json!({"language": "de"}), "training waits for labelled text of `de`");
        check("missed", json!({"missed": 3}), "3 events came too fast to be shown");
        check("news", json!({"a": 1}), "news {\"a\":1}");
        check("step", json!("odd"), "step 0: loss 0.000, top-1 0.000, λ 0.00, gradient norm 0.00, 0 tokens in 0.00 s");
    }
}
