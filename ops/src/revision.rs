//! The revision: a number that grows with every change, so that a client can change what it has seen and nothing else.

use crate::reply::Refusal;
use hyper::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Counts changes, from a number that differs from process to process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Revision {
    number: Arc<AtomicU64>,
    /// Held alone by a change that depends on the revision, shared by all others.
    changing: Arc<RwLock<()>>,
}

/// Held while a change is made.
#[derive(Debug)]
pub(crate) enum Turn {
    Shared { _held: OwnedRwLockReadGuard<()> },
    Alone { _held: OwnedRwLockWriteGuard<()> },
}

impl Default for Revision {
    fn default() -> Self {
        // 48 bits of what the standard library seeds its hash maps with: a client keeps every digit, whatever it counts with.
        let start = RandomState::new().hash_one("revision") >> 16;
        Self { number: Arc::new(AtomicU64::new(start)), changing: Arc::default() }
    }
}

impl Revision {
    /// Something was changed otherwise than by a command.
    pub fn grow(&self) {
        self.number.fetch_add(1, Ordering::AcqRel);
    }

    /// The present one.
    pub(crate) fn tag(&self) -> HeaderValue {
        let tag = format!("\"{}\"", self.number.load(Ordering::Acquire));
        HeaderValue::from_str(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
    }

    /// Waits for the turn of a change. One with `If-Match` is refused if the revision is not one of those named, or if a change
    /// is under way that will move it.
    pub(crate) async fn turn(&self, headers: &HeaderMap) -> Result<Turn, Refusal> {
        if !headers.contains_key(header::IF_MATCH) || names(headers, "*") {
            return Ok(Turn::Shared { _held: Arc::clone(&self.changing).read_owned().await });
        }
        let held = Arc::clone(&self.changing).try_write_owned();
        let held = held.map_err(|_| changed("another change is being made"))?;
        if self.tag().to_str().is_ok_and(|tag| names(headers, tag)) {
            Ok(Turn::Alone { _held: held })
        } else {
            Err(changed("something was changed since"))
        }
    }
}

/// Whether `If-Match` has `tag`. Weak tags match nothing.
fn names(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|named| named.trim() == tag)
}

fn changed(what: &str) -> Refusal {
    let message = format!("{what}: ask again what there is, and send its ETag as If-Match");
    Refusal::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", message)
}
