//! Pieces of a log as messages. A piece that is larger than the server takes goes in several parts.

use super::wire::WireError;
use store::SequenceNumber;
use store::log::{Piece, Place};

/// Version of the messages. Streams of earlier versions are read on, so it changes only with their form.
const VERSION: u32 = 1;

/// Bytes of a message before its part of the piece.
const HEAD_BYTES: usize = 48;

/// A part of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The piece, with the bytes of this part alone.
    pub(super) piece: Piece,
    /// Bytes of the whole piece.
    pub(super) total_bytes: u64,
    /// Where in the piece these bytes begin.
    pub(super) from: u64,
}

impl Part {
    /// A piece in parts that make messages of at most `limit` bytes.
    pub(super) fn all(piece: &Piece, limit: usize) -> impl Iterator<Item = Self> + '_ {
        let size = limit.saturating_sub(HEAD_BYTES).max(1);
        piece.bytes.chunks(size).enumerate().map(move |(number, bytes)| Self {
            piece: Piece { bytes: bytes.to_vec(), ..piece.clone() },
            total_bytes: piece.bytes.len() as u64,
            from: (number * size) as u64,
        })
    }

    /// Whether it is the piece's last one.
    pub(super) fn is_last(&self) -> bool {
        self.from + self.piece.bytes.len() as u64 == self.total_bytes
    }

    /// What no other part is called that this life of a publisher stores.
    pub(super) fn name(&self, life: u64) -> String {
        let Piece { at, .. } = &self.piece;
        format!("{life:x}-{}-{}-{}-{}", at.segment, at.offset, self.total_bytes, self.from)
    }

    /// As a message.
    pub(super) fn encode(&self) -> Vec<u8> {
        let Piece { at, previous, bytes, end } = &self.piece;
        let mut message = Vec::with_capacity(HEAD_BYTES + bytes.len());
        message.extend(VERSION.to_le_bytes());
        message.extend(previous.to_le_bytes());
        for number in [at.segment.0, at.offset, end.0, self.total_bytes, self.from] {
            message.extend(number.to_le_bytes());
        }
        message.extend(bytes);
        message
    }

    /// From a message.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn decode(message: &[u8]) -> Result<Self, WireError> {
        let (head, bytes) = message.split_first_chunk::<HEAD_BYTES>().ok_or(WireError("it is too short"))?;
        let small = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let large = |at: usize| u64::from(small(at)) | u64::from(small(at + 4)) << 32;
        if small(0) != VERSION {
            return Err(WireError("another version"));
        }
        let at = Place { segment: SequenceNumber(large(8)), offset: large(16) };
        let piece = Piece { at, previous: small(4), bytes: bytes.to_vec(), end: SequenceNumber(large(24)) };
        let part = Self { piece, total_bytes: large(32), from: large(40) };
        let ends_within = part.from.checked_add(bytes.len() as u64).is_some_and(|end| end <= part.total_bytes);
        if ends_within && !bytes.is_empty() { Ok(part) } else { Err(WireError("a part beyond its piece")) }
    }
}

/// Puts parts together again.
#[derive(Debug, Default)]
pub(super) struct Joined {
    whole: Option<Part>,
}

impl Joined {
    /// Adds the next part; gives the piece once it is whole. A part that does not follow the one before is passed over, and so is what was there: all of them
    /// come again, if they are not there already.
    pub(super) fn add(&mut self, part: Part) -> Option<Piece> {
        if part.from == 0 {
            self.whole = Some(part);
        } else {
            let so_far = self.whole.as_mut()?;
            let (there, end) = (so_far.piece.bytes.len() as u64, part.from + part.piece.bytes.len() as u64);
            let is_same = (so_far.piece.at, so_far.total_bytes) == (part.piece.at, part.total_bytes);
            if is_same && end <= there {
                return None; // It came twice.
            }
            if !is_same || part.from != there {
                self.whole = None;
                return None;
            }
            so_far.piece.bytes.extend(part.piece.bytes);
        }
        let is_whole = self.whole.as_ref().is_some_and(Part::is_last);
        self.whole.take_if(|_| is_whole).map(|part| part.piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_from_their_parts() {
        let at = Place { segment: SequenceNumber(7), offset: 1 << 40 };
        let piece = Piece { at, previous: 0xdead_beef, bytes: (0..=255).collect(), end: SequenceNumber(99) };
        for limit in [1, 100, 147, 148, 149, 303, 304, 1000] {
            let mut joined = Joined::default();
            let mut found = Vec::new();
            for part in Part::all(&piece, limit) {
                let message = part.encode();
                assert!(message.len() <= limit.max(HEAD_BYTES + 1));
                assert_eq!(Part::decode(&message), Ok(part.clone()));
                found.extend(joined.add(part));
            }
            assert_eq!(found, std::slice::from_ref(&piece), "limit {limit}");
        }
        let parts: Vec<Part> = Part::all(&piece, 148).collect();
        assert_eq!(parts.len(), 3);
        let mut joined = Joined::default();
        let twice: Vec<Piece> =
            [0, 1, 1, 0, 1, 1, 2].into_iter().filter_map(|at: usize| joined.add(parts[at].clone())).collect();
        assert_eq!(twice, std::slice::from_ref(&piece), "what comes twice is passed over");
        let mut joined = Joined::default();
        assert!([0, 2, 1].map(|number: usize| joined.add(parts[number].clone())).iter().all(Option::is_none));
        assert!(Part::decode(&parts[0].encode()[..HEAD_BYTES]).is_err());
        let mut other = parts[0].encode();
        other[0] ^= 1;
        assert!(Part::decode(&other).is_err());
    }
}
