//! The revision: a number that moves with every change, so that a client can change what it has seen and nothing else.

use crate::reply::Refusal;
use hyper::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts changes, from a number that differs from process to process. Cloning shares it.
///
/// A change moves it when it begins, and again when it is over: nobody waits for anybody, and an answer that was given while a
/// change was under way is not taken for one of after it.
#[derive(Clone, Debug)]
pub struct Revision(Arc<AtomicU64>);

/// A change that is being made. The revision moves again when this goes, whatever came of it: also if the command panicked.
#[derive(Debug)]
pub(crate) struct Changing(Revision);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.grow();
    }
}

impl Default for Revision {
    fn default() -> Self {
        // 48 bits of what the standard library seeds its hash maps with: a client keeps every digit, whatever it counts with.
        let start = RandomState::new().hash_one("revision") >> 16;
        Self(Arc::new(AtomicU64::new(start)))
    }
}

impl Revision {
    /// Something is changed otherwise than by a command: to be called before and after.
    pub fn grow(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// The present one.
    pub(crate) fn tag(&self) -> HeaderValue {
        tag(self.0.load(Ordering::Acquire))
    }

    /// A change begins. One with `If-Match` is refused if the revision is not one of those named; of two that name the same one,
    /// one begins.
    pub(crate) fn begin(&self, headers: &HeaderMap) -> Result<Changing, Refusal> {
        match self.named(headers)? {
            None => self.grow(),
            Some(now) => {
                let moved = self.0.compare_exchange(now, now.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire);
                moved.map_err(|_| changed())?;
            }
        }
        Ok(Changing(self.clone()))
    }

    /// A command begins that changes nothing. With `If-Match` it is refused as a change is.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        self.named(headers).map(|_| ())
    }

    /// The present revision, if `If-Match` names it; `None`: any will do.
    fn named(&self, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
        if !headers.contains_key(header::IF_MATCH) || names(headers, b"*") {
            return Ok(None);
        }
        let now = self.0.load(Ordering::Acquire);
        if names(headers, tag(now).as_bytes()) { Ok(Some(now)) } else { Err(changed()) }
    }
}

fn tag(number: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{number}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Whether `If-Match` has `tag`. Weak tags match nothing.
fn names(headers: &HeaderMap, tag: &[u8]) -> bool {
    let values = headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|named| named.trim().as_bytes() == tag)
}

fn changed() -> Refusal {
    let message = "something was changed since: ask again what there is, and send its ETag as If-Match";
    Refusal::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn of_changes_that_name_the_same_revision_one_begins() {
        const CLIENTS: usize = 8;
        let revision = Revision::default();
        for _ in 0..50 {
            let headers = HeaderMap::from_iter([(header::IF_MATCH, revision.tag())]);
            let at_once = Barrier::new(CLIENTS);
            let begin = || {
                at_once.wait();
                revision.begin(&headers).is_ok()
            };
            let begun = thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(begin)).collect();
                clients.into_iter().map(|client| client.join().unwrap()).filter(|begun| *begun).count()
            });
            assert_eq!(begun, 1);
            assert!(revision.check(&headers).is_err());
        }
    }

    #[test]
    fn a_change_moves_it_when_it_begins_and_when_it_is_over() {
        let revision = Revision::default();
        let (none, before) = (HeaderMap::new(), revision.tag());
        let changing = revision.begin(&none).unwrap();
        let during = revision.tag();
        drop(changing);
        let after = revision.tag();
        assert!(before != during && during != after && before != after, "{before:?} {during:?} {after:?}");
        revision.check(&none).unwrap();
        assert_eq!(revision.tag(), after, "what changes nothing moves nothing");
    }
}
