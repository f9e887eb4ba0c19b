//! `mergedistill log publish` and `log follow`: one log in several places.

use crate::cli::{LogFollowArgs, LogPublishArgs};
use crate::commands::stop_signal::stopped_by_signals;
use crate::failure::Failure;
use store::log::Need;
use store::{LogReader, SequenceNumber};
use teacher::remote::{CaughtUp, Follower, Publisher, PublisherOptions};

/// Publishes a log until it is told to stop, or once.
pub(super) fn publish(args: &LogPublishArgs) -> Result<(), Failure> {
    let control = stopped_by_signals(|| {})?;
    let log = LogReader::open(&args.dir)?;
    let link = args.link.options(args.replicas)?;
    let options = PublisherOptions { link, stream_bytes: args.stream_bytes, once: args.once };
    let mut publisher = Publisher::open(&options, log)?;
    let mut published = None;
    // Nobody is told what is needed here: where a daemon with retention writes the log, it publishes by itself.
    publisher.run(&Need::default(), &control, |end| published = Some(end))?;
    match published {
        Some(SequenceNumber(end)) => tracing::info!(end, "published"),
        None => tracing::info!("nothing was to be published"),
    }
    Ok(())
}

/// Follows a log until it is told to stop, or until it has caught up.
pub(super) fn follow(args: &LogFollowArgs) -> Result<(), Failure> {
    let control = stopped_by_signals(|| {})?;
    let Some(mut follower) = Follower::open(args.link.options(1)?, &args.dir, &control)? else { return Ok(()) };
    match follower.catch_up(&control)? {
        CaughtUp::Whole => tracing::info!(end = follower.end().0, "the log is as it is published"),
        CaughtUp::Stopped => return Ok(()),
        CaughtUp::NoRoom(error) if args.once => return Err(error.into()),
        CaughtUp::NoRoom(_) => {}
    }
    if args.once {
        return Ok(());
    }
    // Who reads the copy is not known here: all of it stays.
    follower.run(&control, |_, _| Ok(())).map_err(Failure::from)
}
