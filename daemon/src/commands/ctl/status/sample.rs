//! A status to test with.

use serde_json::{Value, json};

/// The status of a run with two teachers, one of which pauses.
pub(crate) fn sample() -> Value {
    json!({
        "version": "1.2.3", "pid": 4711, "memory_bytes": 523_400_000, "stuck": [{"stage": "teacher", "seconds": 400}],
        "state": "paused", "failure": null, "uptime_seconds": 3725.4,
        "stages": {
            "ingest": {"paused": false, "waiting": null, "waits_for": "training to catch up",
                "items_in": 1200, "items_out": 1200, "in_flight": 0},
            "teacher": {"paused": true, "items_in": 1200, "items_out": 1100, "in_flight": 100},
            "log": {"paused": false, "waiting": "disk space", "items_in": 1100, "items_out": 1100, "in_flight": 0},
            "trainer": {"paused": false, "waiting": "labelled text of `de`", "items_in": 64, "items_out": 64},
        },
        "rates": {"label_tokens_per_second": 16561.4, "train_tokens_per_second": 0.0},
        "log": {"appended": 1100.0, "durable": 1090, "begin": 0, "bytes": 3_173_883, "segments": 2,
            "backlog_bytes": 1_200_000, "max_backlog_bytes": 1_000_000},
        "teachers": {
            "日本語": {"index": 1, "languages": ["ja"], "labels": true, "paused": true, "state": "idle"},
            "en": {"index": 0, "languages": ["en", "de"], "labels": true, "paused": false, "state": "labelling"},
        },
        "workers": [
            {"worker": "gpu-1/17", "teacher": "en", "tokens_per_second": 16561.4, "batches": 120, "in_flight": 2, "silent": false},
            {"worker": "gpu-2/4", "teacher": "日本語", "tokens_per_second": 0.0, "batches": 7, "in_flight": 0, "silent": true},
        ],
        "corpora": {
            "corpora": [{"name": "wiki", "language": "en", "state": "reading", "share": 0.25, "documents": 898,
                "characters_available": 39625, "characters_consumed": 9625, "quarantined": 3}],
            "languages": [{"language": "en", "share": 0.25, "overridden": true}],
            "changes": [{"from_sequence": 900, "at_unix_seconds": 1_795_284_100,
                "change": {"kind": "set_share", "language": "en", "share": 0.25}}],
        },
        "inboxes": {"retry": {"documents": 0, "unread_bytes": 0, "limit_bytes": 1000}},
        "arrival_to_gradient": {"records": 12, "p50_seconds": 1.25, "p99_seconds": 3.5},
        "train": {"step": 250, "steps": 1000, "loss": 5.08153, "lambda": 0.75, "learning_rate": 0.0005},
        "evaluation": {"step": 200, "languages": {"en": {"teachers": {"en": {"loss": 5.7, "top1": 0.2,
            "student_loss": 6.1, "student_top1": 0.1, "rdt": -50.0}}}}},
        "release": {"name": "may", "state": "running", "step": 3, "steps": 50, "out": "/students/may"},
        "warnings": [{"at_unix_seconds": 1_795_284_200.5, "level": "warn", "message": "wiki.txt: no UTF-8"}],
    })
}
