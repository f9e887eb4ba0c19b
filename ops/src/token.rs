//! The bearer token that opens control on TCP.

use crate::OpsError;
use crate::reply::Refusal;
use hyper::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Shorter ones can be guessed.
const LEAST_BYTES: usize = 16;
const MOST_BYTES: usize = 1024;

/// A secret that a client shows. Only its hash is kept, and neither it nor the hash is ever printed.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads the token from a file, without the white space around it.
    ///
    /// # Errors
    /// When the file cannot be read, or what stands in it is too short, too long or not printable ASCII.
    pub fn read(path: &Path) -> Result<Self, OpsError> {
        let content = fs::read(path).map_err(|source| OpsError::TokenFile { path: path.to_owned(), source })?;
        let token = content.trim_ascii();
        let printable = token.iter().all(u8::is_ascii_graphic);
        if !printable || !(LEAST_BYTES..=MOST_BYTES).contains(&token.len()) {
            return Err(OpsError::Token { path: path.to_owned(), least_bytes: LEAST_BYTES, most_bytes: MOST_BYTES });
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// What is wrong with the rights of a token's file, and what to do about it; `None`: nothing, or it cannot be said.
    #[must_use]
    pub fn exposure(path: &Path) -> Option<String> {
        let mode = fs::metadata(path).ok()?.permissions().mode();
        let may = match mode & 0o006 {
            0 => return None,
            0o004 => "read",
            0o002 => "replace",
            _ => "read and replace",
        };
        let shown = path.display();
        Some(format!("every user of this machine may {may} the token in ops.token_file {shown}: chmod o-rw {shown}"))
    }

    /// Lets a request through that carries the token.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let shown = values.next().and_then(|value| bearer(value.as_bytes()));
        if shown.is_some_and(|shown| self.is(shown)) && values.next().is_none() {
            return Ok(());
        }
        let message = "on TCP this needs the header `Authorization: Bearer <token>`, with the token in ops.token_file";
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "token_needed", message))
    }

    /// Takes the same time wherever the two differ: hashes of what a client may choose are compared, all of them.
    fn is(&self, shown: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(shown).into();
        let difference = self.0.iter().zip(digest).fold(0, |difference, (a, b)| difference | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// What follows the scheme, whose name may be in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_that_others_may_read_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "0123456789abcdef").unwrap();
        for (mode, expected) in
            [(0o600, None), (0o640, None), (0o644, Some(" may read the")), (0o666, Some(" may read and replace the"))]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let told = Token::exposure(&path);
            assert_eq!(told.is_some(), expected.is_some(), "{mode:o}");
            if let (Some(told), Some(expected)) = (told, expected) {
                assert!(told.contains(expected), "{told}");
                assert!(told.ends_with(&format!("chmod o-rw {}", path.display())), "{told}");
            }
        }
        assert_eq!(Token::exposure(&folder.path().join("none")), None);
    }
}
