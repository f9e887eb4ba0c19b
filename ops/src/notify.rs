//! Telling the service manager how it goes: the protocol of `sd_notify(3)`.
//!
//! Without `NOTIFY_SOCKET` in the environment (not started by systemd, or not with `Type=notify`) nothing happens.
//! A service manager that cannot be told is no reason to fail: that is logged.
//!
//! The crate `sd-notify` would do most of this, but it takes an address in the abstract namespace (`@name`) for a path, and there
//! are managers that have theirs there.

use rustix::time::{ClockId, clock_gettime};
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Everything runs.
pub fn ready() {
    tell("READY=1");
}

/// The configuration is being read again; [`ready`] says when that is done, whatever came of it. The time lets a manager that
/// waits for that (systemd 253 and later, `Type=notify-reload`) tell this reload from the one before.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// The daemon has begun to stop.
pub fn stopping() {
    tell("STOPPING=1");
}

/// A start or stop that gets on takes longer: the manager is to wait `more` from now on, if that is later than it would give up.
pub fn extend_timeout(more: Duration) {
    tell(&format!("EXTEND_TIMEOUT_USEC={}", more.as_micros()));
}

/// A sign of life; to be given more often than [`watchdog_interval`].
pub fn watchdog() {
    tell("WATCHDOG=1");
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&format!("STATUS={}", line.replace(['\r', '\n'], " ")));
}

/// How often the service manager expects [`watchdog`] at the least, if it does.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let variable = |name| env::var(name).ok();
    interval(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id())
}

fn tell(message: &str) {
    let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else { return };
    if let Err(error) = send(&address, message) {
        tracing::warn!(socket = %address.display(), message, %error, "cannot notify the service manager");
    }
}

/// The address is a path, or `@` and a name in the abstract namespace.
fn send(address: &OsStr, message: &str) -> io::Result<()> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

fn interval(microseconds: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, id};

    /// Run by the test below in a process of its own, where the environment is the service manager's.
    #[test]
    #[ignore = "half of `messages_arrive_in_order`"]
    fn a_notified_process() {
        ready();
        status("two\nlines");
        watchdog();
        extend_timeout(Duration::from_millis(1500));
        reloading();
        stopping();
    }

    #[test]
    fn messages_arrive_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let abstract_name = format!("mergedistill-ops-test-{}", id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name).expect("an address");
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path)),
            (format!("@{abstract_name}").into(), UnixDatagram::bind_addr(&abstract_address)),
        ];
        for (address, listener) in listeners {
            let listener = listener.expect("a socket");
            let status = Command::new(env::current_exe().expect("this test"))
                .args(["--exact", "--ignored", "--quiet", "notify::tests::a_notified_process"])
                .env("NOTIFY_SOCKET", &address)
                .status();
            assert!(status.expect("it runs").success());
            let told = || {
                let mut buffer = [0; 128];
                let length = listener.recv(&mut buffer).expect("a message");
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            };
            let expected = ["READY=1", "STATUS=two lines", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"];
            assert_eq!(expected.map(|_| told()), expected);
            let reloading = told();
            let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the time in the same message");
            let now = clock_gettime(ClockId::Monotonic).tv_sec;
            assert!(
                (now - since.parse::<i64>().expect("microseconds") / 1_000_000).abs() < 60,
                "{reloading} at {now} s"
            );
            assert_eq!(told(), "STOPPING=1");
        }
    }

    #[test]
    fn nobody_to_tell_is_an_error_of_send_alone() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
        assert!(send(OsStr::new("relative/\0"), "READY=1").is_err());
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(interval(Some("1000000"), Some("7"), 7), second);
        assert_eq!(interval(Some("1000000"), None, 7), second);
        assert_eq!(interval(Some("1000000"), Some("8"), 7), None);
        assert_eq!(interval(Some("0"), None, 7), None);
        assert_eq!(interval(Some("soon"), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }
}
