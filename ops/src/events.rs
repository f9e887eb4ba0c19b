//! The feed of events: any number of publishers, and per subscriber a ring that overwrites its oldest.

use futures_core::Stream;
use hyper::body::Bytes;
use prometheus::{IntCounter, IntGauge};
use ring_channel::{RingReceiver, RingSender, ring_channel};
use serde_json::Value;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

/// Events kept for readers that come back.
const RECENT: usize = 256;

/// Where stages publish what happens, and from where readers of `/v1/events` get it. Cloning shares it.
///
/// Publishing never waits for a reader. A reader that falls behind loses its oldest events and is told how many:
/// `event: missed` with `{"missed": n}` comes before the next event it does get. Every event has an `id`, counted
/// through the life of the hub. A reader that comes back with the last one it saw (`Last-Event-ID`) gets what it missed
/// meanwhile, of the latest 256, and is told how many more there were.
///
/// The live page draws `step` (`{step, loss, …}`) and refreshes on `evaluation`; other names are passed on.
#[derive(Clone, Debug)]
pub struct EventHub {
    hub: Arc<Hub>,
}

#[derive(Debug)]
struct Hub {
    state: Mutex<State>,
    metrics: EventMetrics,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the first event of this hub.
    first: u64,
    /// Number of the next event.
    next: u64,
    /// The latest events, for readers that come back; none until there was a reader.
    recent: VecDeque<Event>,
    /// Whether there ever was a reader.
    was_read: bool,
    /// Tells subscribers apart.
    next_key: u64,
    closed: bool,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    key: u64,
    sender: RingSender<Event>,
}

#[derive(Clone, Debug)]
pub(crate) struct EventMetrics {
    pub(crate) published: IntCounter,
    pub(crate) dropped: IntCounter,
    pub(crate) subscribers: IntGauge,
}

/// One event, encoded once for all subscribers.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: u64,
    /// `event: …` and `data: …`, and the empty line that ends an event.
    pub(crate) fields: Bytes,
}

/// An event and how many before it were overwritten.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) missed: u64,
    pub(crate) event: Event,
}

/// Why there is no place for another subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    TooMany,
    Closed,
}

impl Default for EventHub {
    fn default() -> Self {
        Self::new()
    }
}

impl EventHub {
    /// A hub without subscribers, whose first event has number 0.
    #[must_use]
    pub fn new() -> Self {
        Self::numbered_from(0)
    }

    /// A hub whose numbers are greater than those of all processes before: so a reader that comes back after a restart is not taken for
    /// one that has seen these events. By the clock, with room for a thousand events a millisecond.
    #[must_use]
    pub fn of_this_process() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::numbered_from(u64::try_from(since.as_millis()).unwrap_or(0).saturating_mul(1000))
    }

    fn numbered_from(first: u64) -> Self {
        let state = State { first, next: first, ..State::default() };
        Self { hub: Arc::new(Hub { state: Mutex::new(state), metrics: EventMetrics::new() }) }
    }

    /// Hands an event to every subscriber. Never waits for one; costs next to nothing as long as there was none.
    pub fn publish(&self, name: &str, data: Value) {
        self.hub.metrics.published.inc();
        if self.hub.skip_if_never_read() {
            return;
        }
        let fields = encode(name, &data);
        let mut state = self.hub.lock();
        let event = Event { id: state.next, fields };
        state.next += 1;
        if state.recent.len() >= RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(event.clone());
        state.subscribers.retain(|subscriber| match subscriber.sender.send(event.clone()) {
            Ok(None) => true,
            Ok(Some(_oldest)) => {
                self.hub.metrics.dropped.inc();
                true
            }
            Err(_disconnected) => false,
        });
    }

    /// A place for one more of at most `most` readers, with a ring of `backlog` events. `seen`: the last event that this reader has seen.
    pub(crate) fn subscribe(
        &self,
        most: usize,
        backlog: NonZeroUsize,
        seen: Option<u64>,
    ) -> Result<Subscription, Refused> {
        let mut state = self.hub.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.subscribers.len() >= most {
            return Err(Refused::TooMany);
        }
        let (sender, receiver) = ring_channel(backlog);
        let key = state.next_key;
        state.next_key += 1;
        state.was_read = true;
        // A number that is not of this hub says nothing.
        let seen = seen.filter(|seen| (state.first..state.next).contains(seen));
        let expected = seen.map_or(state.next, |seen| seen + 1);
        for event in state.recent.iter().filter(|event| event.id >= expected) {
            // What is overwritten is counted as missed when it is read.
            drop(sender.send(event.clone()));
        }
        state.subscribers.push(Subscriber { key, sender });
        self.hub.metrics.subscribers.inc();
        Ok(Subscription { hub: Arc::clone(&self.hub), key, receiver, expected })
    }

    /// Ends every subscription once its reader has what is in its ring, and refuses new ones.
    pub(crate) fn close(&self) {
        let mut state = self.hub.lock();
        state.closed = true;
        let subscribers = std::mem::take(&mut state.subscribers);
        drop(state);
        drop(subscribers);
    }

    pub(crate) fn metrics(&self) -> &EventMetrics {
        &self.hub.metrics
    }
}

/// One reader's end. Dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    key: u64,
    receiver: RingReceiver<Event>,
    /// Number of the next event if none is missed.
    expected: u64,
}

impl Subscription {
    /// The oldest event that is still there; `None` once the hub is closed.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let Some(event) = ready!(Pin::new(&mut self.receiver).poll_next(context)) else {
            return Poll::Ready(None);
        };
        let missed = event.id - self.expected;
        self.expected = event.id + 1;
        Poll::Ready(Some(Delivery { missed, event }))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.lock().subscribers.retain(|subscriber| subscriber.key != self.key);
        self.hub.metrics.subscribers.dec();
    }
}

impl Hub {
    /// Numbers an event that nobody has ever been there to read. Returns whether that was so.
    fn skip_if_never_read(&self) -> bool {
        let mut state = self.lock();
        if !state.was_read {
            state.next += 1;
        }
        !state.was_read
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventMetrics {
    fn new() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("a constant name");
        Self {
            published: counter("mergedistill_events_published_total", "Events published to the live feed."),
            dropped: counter(
                "mergedistill_events_dropped_total",
                "Events overwritten before a subscriber of the live feed had read them.",
            ),
            subscribers: IntGauge::new("mergedistill_event_subscribers", "Subscribers of the live feed.")
                .expect("a constant name"),
        }
    }
}

fn encode(name: &str, data: &Value) -> Bytes {
    // A line break would end the field. JSON as serde_json writes it has none.
    let name = name.replace(['\r', '\n'], " ");
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::task::Waker;

    fn take(subscription: &mut Subscription) -> Option<(u64, u64)> {
        match subscription.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(delivery)) => Some((delivery.missed, delivery.event.id)),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    fn backlog(events: usize) -> NonZeroUsize {
        NonZeroUsize::new(events).expect("not zero")
    }

    #[test]
    fn the_newest_win_and_the_missed_are_counted() {
        let hub = EventHub::new();
        hub.publish("before", json!(null));
        let mut slow = hub.subscribe(2, backlog(3), None).expect("a place");
        let mut quick = hub.subscribe(2, backlog(3), None).expect("a place");
        for n in 1..=5 {
            hub.publish("step", json!({ "step": n }));
            assert_eq!(take(&mut quick), Some((0, n)));
        }
        assert_eq!(take(&mut slow), Some((2, 3)));
        assert_eq!(take(&mut slow), Some((0, 4)));
        assert_eq!(take(&mut slow), Some((0, 5)));
        assert_eq!(take(&mut slow), None);
        assert_eq!(hub.metrics().dropped.get(), 2);
        assert_eq!(hub.metrics().published.get(), 6);
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let hub = EventHub::new();
        let first = hub.subscribe(1, backlog(1), None).expect("a place");
        assert_eq!(hub.subscribe(1, backlog(1), None).err(), Some(Refused::TooMany));
        drop(first);
        let mut second = hub.subscribe(1, backlog(1), None).expect("the place is free again");
        hub.publish("last", json!(1));
        hub.close();
        assert_eq!(take(&mut second), Some((0, 0)), "what was published before the end is still read");
        assert!(matches!(second.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Ready(None)));
        assert_eq!(hub.subscribe(1, backlog(1), None).err(), Some(Refused::Closed));
        drop(second);
        assert_eq!(hub.metrics().subscribers.get(), 0);
    }

    #[test]
    fn a_reader_that_comes_back_gets_what_it_missed() {
        let hub = EventHub::numbered_from(1000);
        drop(hub.subscribe(1, backlog(4), None));
        for n in 0..RECENT as u64 + 10 {
            hub.publish("step", json!({ "step": n }));
        }
        let next = 1000 + RECENT as u64 + 10;
        let delivered = |seen| {
            let mut back = hub.subscribe(1, backlog(4), Some(seen)).expect("a place");
            std::iter::from_fn(|| take(&mut back)).collect::<Vec<_>>()
        };
        assert_eq!(delivered(next - 3), [(0, next - 2), (0, next - 1)]);
        assert_eq!(delivered(next - 1), [], "it has seen all");
        assert_eq!(delivered(1001)[0], (next - 4 - 1002, next - 4), "all but the latest four are counted");
        assert_eq!(delivered(999), [], "of another process");
        assert_eq!(delivered(next), [], "not ours either");
        assert!(EventHub::of_this_process().hub.lock().first > 1_600_000_000_000_000);
    }

    #[test]
    fn a_name_cannot_forge_a_field() {
        let fields = encode("a\ndata: forged\r\n\r\n", &json!({ "text": "two\nlines" }));
        assert_eq!(fields, "event: a data: forged    \ndata: {\"text\":\"two\\nlines\"}\n\n".as_bytes());
    }
}
