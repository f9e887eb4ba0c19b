//! Threads that fill inboxes from standard input and pipes. They outlive the stages that read the inboxes: when those are opened
//! anew nothing of what is in a pipe is lost.

use crate::failure::Failure;
use crate::pipeline::{Ended, StageEnd, spawn};
use crate::push::Inboxes;
use crossbeam::channel::{Receiver, unbounded};
use std::thread::JoinHandle;
use store::stage::StageControl;

/// The threads.
pub struct Pumps {
    /// Each reports its end here, once. Never disconnected while this lives.
    pub ends: Receiver<StageEnd>,
    /// Threads that have not reported their end.
    pub running: usize,
    control: StageControl,
    threads: Vec<JoinHandle<()>>,
    _end: crossbeam::channel::Sender<StageEnd>,
}

impl Pumps {
    /// Starts a thread for each inbox that is filled from here.
    pub fn start(inboxes: &Inboxes) -> Result<Self, Failure> {
        let (end, ends) = unbounded(); // one message per thread
        let control = StageControl::default();
        let mut threads = Vec::new();
        for (name, pump) in inboxes.pumps(&control) {
            threads.push(spawn(name, Box::new(move || pump().map(|()| Ended::Done)), end.clone())?);
        }
        Ok(Self { ends, running: threads.len(), control, threads, _end: end })
    }

    /// Stops them: what they have read, and is whole, is made durable.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Waits for the threads, which have all reported their end.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join(); // A panic was reported as its end.
        }
    }
}
