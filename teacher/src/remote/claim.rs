//! Whose a run is: one coordinator's at a time, because two would take each other's labels away.
//!
//! Who starts asks whether somebody is there, and is refused if somebody answers. Then it claims the run: it says which teachers are meant, as the next
//! message of the run's stream of specs, if nobody has said so since it looked. So of two that start at once, neither of which hears the other, one is
//! refused. Who could not be heard, because it was stopped or its network was cut, finds the other one's claim when it looks again, and labels no more.

use super::link::{Link, LinkError, RETRY, without_secrets};
use super::spec::{CoordinatorStart, RunSpec};
use async_nats::Subscriber;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use futures_util::StreamExt;
use std::time::Duration;

/// So often a claim is tried while the stream is not what it was a moment ago.
const CLAIM_ATTEMPTS: usize = 5;

/// How long another coordinator has to say that it is there.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(2);

/// What says to others that this coordinator is there.
pub(super) struct Answering(tokio::task::JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whose the run is.
pub(super) enum Standing {
    /// This coordinator's, as far as anybody knows.
    Own,
    /// The server has forgotten the claim, and perhaps more.
    Forgotten,
    /// Another one's.
    Taken(LinkError),
}

/// The latest claim.
#[derive(Debug)]
struct Latest {
    /// Claims so far, its own included; 0: there is none.
    number: u64,
    /// Who has made it; `None`: there is none.
    by: Option<CoordinatorStart>,
}

/// Makes the run's streams, and takes the run. Gives the number of the claim.
///
/// # Errors
/// [`LinkError::Taken`] if it is somebody else's; any other if the server does not do what is asked.
pub(super) async fn take(link: &Link, spec: &RunSpec) -> Result<(Answering, u64), LinkError> {
    let before = latest(link).await?;
    refuse_second(link).await?;
    let asked = link.hear(link.coordinator_subject()).await;
    let answering = Answering(tokio::spawn(answer(link.clone(), spec.coordinator.who.clone(), asked)));
    link.prepare(spec).await?;
    let number = claim(link, spec, before).await?;
    Ok((answering, number))
}

/// Makes streams that are gone, and claims the run again, unless somebody else has come first.
///
/// # Errors
/// As [`take`].
pub(super) async fn renew(link: &Link, spec: &RunSpec) -> Result<u64, LinkError> {
    let before = latest(link).await?;
    link.prepare(spec).await?;
    claim(link, spec, before).await
}

/// Whose the run is now, which this coordinator has claimed under this number.
///
/// # Errors
/// When the server does not say.
pub(super) async fn standing(link: &Link, spec: &RunSpec, number: u64) -> Result<Standing, LinkError> {
    let latest = latest(link).await?;
    Ok(match latest.by {
        Some(by) if by.life == spec.coordinator.life => Standing::Own,
        Some(by) if latest.number > number => Standing::Taken(taken(link, by.who)),
        _ => Standing::Forgotten,
    })
}

async fn latest(link: &Link) -> Result<Latest, LinkError> {
    let number = match link.context.get_stream(link.stream_name("spec")).await {
        Ok(stream) => stream.cached_info().state.last_sequence,
        Err(error) if error.to_string().contains("not found") => 0,
        Err(error) => return Err(link.refused("tell of its streams (is JetStream switched on?)", error.to_string())),
    };
    // Asked for later than the number, so what comes in between is not taken for what was before.
    let Some((number, message)) = link.spec_message().await? else { return Ok(Latest { number, by: None }) };
    let spec: Option<serde_json::Value> = serde_json::from_slice(&message).ok();
    let by = spec.and_then(|mut spec| serde_json::from_value(spec["coordinator"].take()).ok());
    // Another version of the program may say it otherwise: then it is another one, whoever it is.
    Ok(Latest { number, by: Some(by.unwrap_or_default()) })
}

/// Claims the run, unless somebody has since `before`. Gives the number of the claim.
async fn claim(link: &Link, spec: &RunSpec, mut before: Latest) -> Result<u64, LinkError> {
    let refused = |reason: String| link.refused("take the run's teachers", reason);
    let message = serde_json::to_vec(spec).map_err(|error| refused(error.to_string()))?;
    let mut reason = String::new();
    for _ in 0..CLAIM_ATTEMPTS {
        let next = PublishMessage::build().payload(message.clone().into()).expected_last_sequence(before.number);
        let sent = link.context.send_publish(link.spec_subject(), next).await;
        match sent.map_err(|error| refused(error.to_string()))?.await {
            Ok(stored) => return Ok(stored.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => reason = error.to_string(),
            Err(error) => return Err(refused(error.to_string())),
        }
        // Somebody has come first; or the stream was not there for a moment, or is a new one.
        let now = latest(link).await?;
        let known = before.by.as_ref().map(|by| by.life);
        let is_first = now.number > before.number && (before.number > 0 || now.number == 1);
        match &now.by {
            Some(by) if by.life == spec.coordinator.life => return Ok(now.number),
            Some(by) if is_first && Some(by.life) != known => return Err(taken(link, by.who.clone())),
            _ => before = now,
        }
    }
    Err(refused(reason))
}

fn taken(link: &Link, who: String) -> LinkError {
    LinkError::Taken { url: without_secrets(&link.options.url), run: link.options.run.clone(), who }
}

/// Asks whether the run has a coordinator already.
async fn refuse_second(link: &Link) -> Result<(), LinkError> {
    let asking = link.client.request(link.coordinator_subject(), bytes::Bytes::new());
    // Nobody is there, or one whose connection is gone.
    let Ok(Ok(answer)) = tokio::time::timeout(TAKEN_TIMEOUT, asking).await else { return Ok(()) };
    let who = String::from_utf8_lossy(&answer.payload).into_owned();
    Err(taken(link, who))
}

/// Says that this coordinator is there.
async fn answer(link: Link, who: String, mut asked: Option<Subscriber>) {
    loop {
        if let Some(asked) = &mut asked {
            while let Some(message) = asked.next().await {
                if let Some(reply) = message.reply {
                    link.say(reply.to_string(), who.clone().into_bytes()).await;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
        asked = link.hear(link.coordinator_subject()).await;
    }
}
