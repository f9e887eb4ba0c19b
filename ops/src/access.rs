//! Who may change something: by a token on TCP, by user and group on the unix socket.

use crate::reply::Refusal;
use crate::routes::Door;
use crate::server::Shared;
use crate::{OpsError, Token};
use hyper::http::request;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals are logged this often at most, whatever is sent.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Users and groups who may change something over the unix socket. Others who may connect may read.
///
/// The daemon's own user and root always may: they can end the process anyway. A user is in a group if the user database says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controllers {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Controllers {
    /// Looks names up: `alice` is a user, `@staff` a group; numbers are taken as they are.
    ///
    /// # Errors
    /// When the user database has no such name, or cannot be read.
    pub fn find<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, OpsError> {
        let users = [Uid::effective(), Uid::from_raw(0)].map(Uid::as_raw);
        let mut found = Self { users: users.into(), groups: BTreeSet::new() };
        for name in names {
            let unknown = |reason| OpsError::Controller { name: name.to_owned(), reason };
            let absent = || unknown("there is none of this name".to_owned());
            match name.strip_prefix('@') {
                Some(group) => found.groups.insert(match group.parse() {
                    Ok(number) => number,
                    Err(_) => {
                        let group = Group::from_name(group).map_err(|error| unknown(error.to_string()))?;
                        group.ok_or_else(absent)?.gid.as_raw()
                    }
                }),
                None => found.users.insert(match name.parse() {
                    Ok(number) => number,
                    Err(_) => {
                        let user = User::from_name(name).map_err(|error| unknown(error.to_string()))?;
                        user.ok_or_else(absent)?.uid.as_raw()
                    }
                }),
            };
        }
        Ok(found)
    }

    /// Whether the process at the other end may change something, if that can be said without the user database.
    fn admit_at_once(&self, peer: Peer) -> Option<bool> {
        let is_listed = self.users.contains(&peer.uid) || self.groups.contains(&peer.gid);
        if is_listed || self.groups.is_empty() { Some(is_listed) } else { None }
    }

    /// Whether the process at the other end may change something. May ask the user database.
    fn admit(&self, peer: Peer) -> bool {
        let at_once = self.admit_at_once(peer);
        at_once.unwrap_or_else(|| groups_of(peer).iter().any(|group| self.groups.contains(group)))
    }

    /// What is wrong if this process cannot tell the users who are named from others; `None`: nothing, or nobody is named.
    pub(crate) fn unseen(&self) -> Option<String> {
        let others = self.users.iter().any(|user| ![0, Uid::effective().as_raw()].contains(user));
        let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        ((others || !self.groups.is_empty()) && !shows_all(&map)).then(|| {
            "[ops] control names users or groups, and to this process others have no number, as it is in a user namespace \
             (the unit's PrivateUsers=): they may read alone; take it out of the namespace to let them in"
                .to_owned()
        })
    }
}

/// Whether a user namespace of this map has every user, by the same number as outside.
fn shows_all(uid_map: &str) -> bool {
    let every = u32::MAX.to_string();
    uid_map.split_ascii_whitespace().eq(["0", "0", &every])
}

/// The groups of a user; none if the user database does not say.
fn groups_of(peer: Peer) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
}

/// The process at the other end of a unix socket when it connected, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: Option<i32>,
}

/// Who sends a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) door: Door,
    /// On the unix socket, unless the kernel does not say.
    pub(crate) peer: Option<Peer>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.door, self.peer) {
            (Door::Tcp(_), _) => f.write_str("tcp token"),
            (Door::Unix, Some(Peer { uid, pid: Some(pid), .. })) => write!(f, "uid {uid}, pid {pid}"),
            (Door::Unix, Some(Peer { uid, .. })) => write!(f, "uid {uid}"),
            (Door::Unix, None) => f.write_str("unix socket"),
        }
    }
}

/// Who may change something, and what was refused.
#[derive(Debug, Default)]
pub(crate) struct Access {
    token: Option<Token>,
    /// `None`: everybody whom the socket's permissions let in.
    controllers: Option<Arc<Controllers>>,
    refused: Mutex<Refused>,
}

/// Refusals since the latest one that was logged.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Access {
    pub(crate) fn new(token: Option<Token>, controllers: Option<Controllers>) -> Self {
        Self { token, controllers: controllers.map(Arc::new), refused: Mutex::default() }
    }

    /// How somebody who comes in here may change something, as the live page has to know: `open`, with a `token`, or `no`.
    /// May ask the user database.
    pub(crate) fn offer(&self, caller: Caller) -> &'static str {
        match (caller.door, &self.token, &self.controllers) {
            (Door::Unix, _, None) => "open",
            (Door::Unix, _, Some(controllers)) if caller.peer.is_some_and(|peer| controllers.admit(peer)) => "open",
            (Door::Tcp(_), Some(_), _) => "token",
            (Door::Tcp(_), None, _) | (Door::Unix, _, Some(_)) => "no",
        }
    }

    /// Logs that somebody was refused, so that tries are seen and a flood of them does not flood the log.
    fn note_refusal(&self, caller: Caller, head: &request::Parts, refusal: &Refusal) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        if refused.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            let by = if refusal.code == "read_only" { caller.to_string() } else { caller.door.name().to_owned() };
            let path: String = head.uri.path().chars().take(100).collect();
            tracing::warn!(by, path, code = refusal.code, count = refused.count, "control refused");
            *refused = Refused { count: 0, logged: Some(Instant::now()) };
        }
    }
}

/// Lets a request through that may change something.
pub(crate) async fn check(shared: &Arc<Shared>, caller: Caller, head: &request::Parts) -> Result<(), Refusal> {
    let access = &shared.access;
    let checked = match (caller.door, &access.token, &access.controllers) {
        (Door::Unix, _, None) => Ok(()),
        (Door::Unix, _, Some(controllers)) => check_peer(shared, controllers, caller.peer).await,
        (Door::Tcp(_), Some(token), _) => token.check(&head.headers),
        (Door::Tcp(_), None, _) => Err(Refusal::forbidden(
            "control_needs_socket",
            "without ops.token_file commands and documents are taken on the unix socket alone; try `mergedistill ctl`"
                .to_owned(),
        )),
    };
    checked.inspect_err(|refusal| access.note_refusal(caller, head, refusal))
}

async fn check_peer(shared: &Arc<Shared>, controllers: &Arc<Controllers>, peer: Option<Peer>) -> Result<(), Refusal> {
    let admitted = match peer {
        None => false,
        Some(peer) => match controllers.admit_at_once(peer) {
            Some(admitted) => admitted,
            // On the pool: the user database may be on another machine.
            None => {
                let controllers = Arc::clone(controllers);
                crate::questions::on_pool(shared, move || controllers.admit(peer)).await?
            }
        },
    };
    if admitted {
        return Ok(());
    }
    let message = "you may read here, not change: ops.control in the configuration names who may";
    Err(Refusal::forbidden("read_only", message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(users: &[u32], groups: &[u32], peer: (u32, u32), admitted: bool) {
        let set = |ids: &[u32]| ids.iter().copied().collect();
        let controllers = Controllers { users: set(users), groups: set(groups) };
        let (uid, gid) = peer;
        assert_eq!(controllers.admit(Peer { uid, gid, pid: None }), admitted, "{controllers:?} {peer:?}");
    }

    #[test]
    fn users_are_admitted_by_name_by_group_and_by_membership() {
        const NOBODY: u32 = 4_000_000_001;
        check(&[], &[], (0, 0), false);
        check(&[7], &[], (7, 8), true);
        check(&[7], &[], (8, 7), false);
        check(&[], &[8], (7, 8), true);
        // root is a member of its group whatever group it connects with; who is not in the user database is in none.
        check(&[], &[0], (0, 4321), true);
        check(&[], &[0], (NOBODY, 4321), false);
    }

    #[test]
    fn a_user_namespace_that_hides_users_is_known() {
        assert!(shows_all("         0          0 4294967295\n"));
        for hiding in [
            "0 0 1\n",
            "0 1000 4294967295\n",
            "         0          0          1\n       998        998          1\n",
            "",
        ] {
            assert!(!shows_all(hiding), "{hiding:?}");
        }
    }
}
