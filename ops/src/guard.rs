//! Keeps other websites out of the loopback port.
//!
//! A browser on this machine reaches the port for any page it shows. A page whose name was made to resolve to 127.0.0.1
//! (DNS rebinding) gives itself away by its Host, a page of another origin by its Origin.

use crate::reply::Refusal;
use hyper::http::uri::Authority;
use hyper::http::{HeaderMap, HeaderValue, Uri, header};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port that a URL of scheme `http` means without naming one.
const HTTP_PORT: u16 = 80;

/// Lets a request through whose Host, and Origin if there is one, name this machine and the `bound` port.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap, bound: SocketAddr) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let ours = host.is_some_and(|host| names_us(host, bound))
        && hosts.next().is_none()
        && uri.authority().is_none_or(|authority| names_us(authority.as_str(), bound));
    if !ours {
        return Err(Refusal::forbidden(
            "foreign_host",
            format!("the Host header must be localhost, 127.0.0.1 or [::1], with port {}", bound.port()),
        ));
    }
    if headers.get_all(header::ORIGIN).iter().all(|origin| is_our_origin(origin, bound)) {
        Ok(())
    } else {
        Err(Refusal::forbidden("foreign_origin", "requests by pages of another origin are refused".to_owned()))
    }
}

fn is_our_origin(origin: &HeaderValue, bound: SocketAddr) -> bool {
    let authority = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
    authority.is_some_and(|authority| names_us(authority, bound))
}

fn names_us(authority: &str, bound: SocketAddr) -> bool {
    // Without a user part: `127.0.0.1@elsewhere` has two readings.
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if authority.as_str() == authority.host() => HTTP_PORT,
        None => return false,
    };
    port == bound.port() && is_this_machine(authority.host(), bound.ip())
}

fn is_this_machine(host: &str, bound: IpAddr) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(version_6) => version_6.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().map(IpAddr::V4),
    };
    address.is_ok_and(|address| {
        address == bound || address == IpAddr::V4(Ipv4Addr::LOCALHOST) || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_host(host: &str, bound: &str, ours: bool) {
        assert_eq!(names_us(host, bound.parse().expect("an address")), ours, "{host} on {bound}");
    }

    #[test]
    fn only_names_of_this_machine_with_the_bound_port_pass() {
        for ours in ["localhost:8080", "LocalHost:8080", "127.0.0.1:8080", "[::1]:8080"] {
            check_host(ours, "127.0.0.1:8080", true);
        }
        for foreign in [
            "",
            "localhost",
            "localhost:",
            "localhost:80",
            "localhost:99999",
            "localhost.:8080",
            "localhost.example:8080",
            "example.org:8080",
            "127.0.0.2:8080",
            "127.1:8080",
            "0.0.0.0:8080",
            "::1:8080",
            "[::ffff:127.0.0.1]:8080",
            "me@localhost:8080",
            "127.0.0.1:8080@example.org",
            "localhost:8080/",
            "localhost:8080 ",
        ] {
            check_host(foreign, "127.0.0.1:8080", false);
        }
        check_host("127.0.0.2:8080", "127.0.0.2:8080", true);
        check_host("localhost", "127.0.0.1:80", true);
        check_host("localhost:", "127.0.0.1:80", false);
    }
}
