//! The body of `/v1/events`: one subscription as server-sent events.

use crate::events::{Delivery, Subscription};
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};

/// Sent first, so that a reader knows at once that it is subscribed.
const GREETING: &str = "retry: 2000\n\n";
const HEARTBEAT: &str = ": still here\n\n";
/// Who is that far behind need not rest before the next write.
const FRAME_BYTES: usize = 32 * 1024;

/// Endless until the hub is closed or the reader leaves. An event that comes after a rest is written at once, and what comes within the rest
/// after that is written at its end, in one piece: hundreds of readers are woken a few times a second, however many events there are.
pub(crate) struct EventBody {
    subscription: Subscription,
    heartbeat: Interval,
    rest: Duration,
    /// Until the next write; `None`: there was a rest.
    resting: Option<Pin<Box<Sleep>>>,
    greeted: bool,
}

impl EventBody {
    /// A reader is written to after `rest` at the earliest, and after `silence` at the latest.
    pub(crate) fn new(subscription: Subscription, rest: Duration, silence: Duration) -> Self {
        let mut heartbeat = interval_at(Instant::now() + silence, silence);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { subscription, heartbeat, rest, resting: None, greeted: false }
    }

    /// What there is to write. `Ready(None)`: the hub is closed, and everything was written.
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(resting) = &mut self.resting {
            ready!(resting.as_mut().poll(context));
            self.resting = None;
        }
        let mut frame = Vec::new();
        while frame.len() < FRAME_BYTES {
            match self.subscription.poll_next(context) {
                Poll::Ready(Some(delivery)) => encode(&delivery, &mut frame),
                Poll::Ready(None) if frame.is_empty() => return Poll::Ready(None),
                Poll::Pending if frame.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => {
                    self.resting = Some(Box::pin(sleep(self.rest)));
                    break;
                }
            }
        }
        Poll::Ready(Some(Bytes::from(frame)))
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        let data = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        if !body.greeted {
            body.greeted = true;
            return data(Bytes::from_static(GREETING.as_bytes()));
        }
        match body.poll_events(context) {
            Poll::Ready(Some(frame)) => {
                body.heartbeat.reset();
                data(frame)
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match body.heartbeat.poll_tick(context) {
                Poll::Ready(_) => data(Bytes::from_static(HEARTBEAT.as_bytes())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

fn encode(delivery: &Delivery, frame: &mut Vec<u8>) {
    if delivery.missed > 0 {
        let _infallible = write!(frame, "event: missed\ndata: {{\"missed\":{}}}\n\n", delivery.missed);
    }
    let _infallible = writeln!(frame, "id: {}", delivery.event.id);
    frame.extend_from_slice(&delivery.event.fields);
}
