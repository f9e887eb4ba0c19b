//! A daemon's inbox: it keeps what it is given, and answers when it is told to.

use ops::{CommandError, Push, PushAnswer, PushTarget};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// What every batch meets.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// What was taken, with where it was for.
    pub(crate) taken: Vec<(PushTarget, Vec<u8>)>,
    /// Batches that are being received.
    pub(crate) open: usize,
    /// What the next bytes are refused with.
    pub(crate) refuses: Option<CommandError>,
    pub(crate) pressed: bool,
    /// Answers are kept back.
    pub(crate) holds: bool,
    pub(crate) held: Vec<(PushAnswer, Value)>,
}

/// A batch that is being received.
pub(crate) struct Received {
    inbox: Arc<Inbox>,
    target: PushTarget,
    bytes: Vec<u8>,
}

impl Received {
    pub(crate) fn new(inbox: &Arc<Inbox>, target: &PushTarget) -> Self {
        inbox.state.lock().unwrap().open += 1;
        Self { inbox: Arc::clone(inbox), target: target.clone(), bytes: Vec::new() }
    }
}

impl Push for Received {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        if let Some(error) = &self.inbox.state.lock().unwrap().refuses {
            return Err(error.clone());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn pressed(&self) -> bool {
        self.inbox.state.lock().unwrap().pressed
    }

    fn finish(mut self: Box<Self>, answer: PushAnswer) {
        let mut state = self.inbox.state.lock().unwrap();
        let bytes = std::mem::take(&mut self.bytes);
        let value = json!({ "accepted": bytes.len(), "rejected": [], "rejected_total": 0, "duplicate": false });
        state.taken.push((self.target.clone(), bytes));
        if state.holds {
            state.held.push((answer, value));
        } else {
            answer(Ok(value));
        }
        drop(state);
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.inbox.state.lock().unwrap().open -= 1;
    }
}
