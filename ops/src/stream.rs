//! The body of `/v1/events`: one subscription as server-sent events.

use crate::events::{Delivery, Subscription};
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Sent first, so that a reader knows at once that it is subscribed.
const GREETING: &str = "retry: 2000\n\n";
const HEARTBEAT: &str = ": still here\n\n";

/// Endless until the hub is closed or the reader leaves.
pub(crate) struct EventBody {
    subscription: Subscription,
    heartbeat: Interval,
    greeted: bool,
}

impl EventBody {
    pub(crate) fn new(subscription: Subscription, silence: Duration) -> Self {
        let mut heartbeat = interval_at(Instant::now() + silence, silence);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { subscription, heartbeat, greeted: false }
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
        match body.subscription.poll_next(context) {
            Poll::Ready(Some(delivery)) => {
                body.heartbeat.reset();
                data(encode(&delivery))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match body.heartbeat.poll_tick(context) {
                Poll::Ready(_) => data(Bytes::from_static(HEARTBEAT.as_bytes())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

fn encode(delivery: &Delivery) -> Bytes {
    let mut head = String::new();
    if delivery.missed > 0 {
        let _infallible = write!(head, "event: missed\ndata: {{\"missed\":{}}}\n\n", delivery.missed);
    }
    let _infallible = writeln!(head, "id: {}", delivery.event.id);
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&delivery.event.fields);
    Bytes::from(bytes)
}
