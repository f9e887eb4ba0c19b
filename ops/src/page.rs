//! The live page, joined from the files in `page/`, and the policy that lets a browser run nothing else.

use crate::reply::{self, ReplyBody};
use hyper::Response;
use hyper::body::Bytes;
use hyper::http::{HeaderValue, header};
use sha2::{Digest, Sha256};

/// What the page is made of: its script's files in the order in which they are run.
const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: [&str; 9] = [
    include_str!("page/format.js"),
    include_str!("page/dom.js"),
    include_str!("page/chart.js"),
    include_str!("page/course.js"),
    include_str!("page/flow.js"),
    include_str!("page/training.js"),
    include_str!("page/tables.js"),
    include_str!("page/control.js"),
    include_str!("page/live.js"),
];

/// The page with its Content-Security-Policy.
pub(crate) struct Page {
    text: Bytes,
    policy: HeaderValue,
}

impl Page {
    pub(crate) fn new() -> Self {
        let text = joined();
        let policy = HeaderValue::from_str(&policy(&text));
        // Refusing everything would be the safe side, if hashes could ever fail to be ASCII.
        let policy = policy.unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
        Self { text: Bytes::from(text), policy }
    }

    pub(crate) fn response(&self) -> Response<ReplyBody> {
        let mut response = reply::content("text/html; charset=utf-8", self.text.clone());
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        response
    }
}

/// One document: the page asks for nothing else to be shown.
fn joined() -> String {
    let script = SCRIPT.concat();
    PAGE.replace("<style></style>", &format!("<style>\n{STYLE}</style>"))
        .replace("<script></script>", &format!("<script>\n\"use strict\";\n{script}</script>"))
}

/// Allows the page's one script and one style by their hashes, and requests to the server itself.
fn policy(page: &str) -> String {
    let hash = |element| {
        let digest: [u8; 32] = Sha256::digest(inside(page, element).as_bytes()).into();
        base64(&digest)
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash("script"),
        hash("style"),
    )
}

/// The text of the page's only `<element>`.
fn inside<'a>(page: &'a str, element: &str) -> &'a str {
    let after = page.split_once(&format!("<{element}>")).map_or("", |(_, after)| after);
    after.split_once(&format!("</{element}>")).map_or("", |(text, _)| text)
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_vectors_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn the_page_is_what_the_policy_allows() {
        let page = joined();
        for element in ["script", "style"] {
            assert_eq!(page.matches(&format!("<{element}")).count(), 1, "one {element}, without attributes");
            assert_eq!(page.matches(&format!("</{element}")).count(), 1, "nothing in it ends it early");
            assert!(inside(&page, element).len() > 100, "{element}");
        }
        assert!(!page.contains(" style="), "style attributes are refused by the policy");
        let beyond_us = page.matches("//").count() - page.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(beyond_us, 0, "no address of another machine, in any notation");
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!page.contains(sink), "{sink} would need trusted types");
        }
        assert!(policy(&page).contains(&format!("'sha256-{}'", base64(&Sha256::digest(inside(&page, "script"))))));
        assert!(Page::new().policy.to_str().is_ok_and(|policy| policy.contains("sha256-")));
    }

    #[test]
    fn every_identifier_that_the_script_looks_up_is_there_once() {
        let script = SCRIPT.concat();
        let looked_up = script.split("$(\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(id, _)| id);
        let mut count = 0;
        for id in looked_up {
            assert_eq!(PAGE.matches(&format!("id=\"{id}\"")).count(), 1, "{id}");
            count += 1;
        }
        assert!(count > 50, "{count}");
    }
}
