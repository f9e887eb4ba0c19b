//! Columns of a block: what each holds, and how its bytes are compressed.

use crate::log::error::Damage;
use std::cell::RefCell;

/// Most bytes a column may have before compression.
pub(crate) const MAX_COLUMN_BYTES: usize = 256 << 20;

const ZSTD_LEVEL: i32 = 3;

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $share:ident;)*) => {
        /// A column of a block. The code identifies content and encoding in a format version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Column {
            $($(#[$doc])* $name = $code,)*
        }

        impl Column {
            /// All columns, in the order in which they are stored.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            pub(crate) fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name in `log stat`.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// What its bytes are counted as.
            pub(crate) fn share(self) -> Share {
                match self {
                    $(Self::$name => Share::$share,)*
                }
            }
        }
    };
}

columns! {
    /// Strings of the block, in order of first use.
    Strings = 1, "strings", Frame;
    /// What each entry is.
    Kinds = 2, "kinds", Frame;
    /// A cursor per entry.
    Cursors = 3, "cursors", Frame;
    /// Key, language, round and number of copies of each record.
    Records = 4, "records", Frame;
    /// Document and reason of each skip.
    Skips = 5, "skips", Frame;
    /// Teacher, length, masked positions and k of each copy.
    Copies = 6, "copies", Frame;
    /// Token ids of all copies.
    TokenIds = 7, "token_ids", Tokens;
    /// Distances between masked positions.
    MaskedPositions = 8, "masked_positions", Labels;
    /// Where each gold id is in the top-k.
    GoldRanks = 9, "gold_ranks", Labels;
    /// Gold ids outside the top-k.
    GoldIds = 10, "gold_ids", Labels;
    /// Ids of the top-k.
    TopIds = 11, "top_ids", Labels;
    /// Logits of the top-k, as distances between float32 bit patterns.
    TopLogits = 12, "top_logits", Labels;
    /// Log-sum-exps, as float32.
    LogSumExp = 13, "log_sum_exp", Labels;
    /// Gold logits that are not among the top-k, as float32.
    GoldLogits = 14, "gold_logits", Labels;
    /// Token ids of all copies, as ranks in the segment's tables.
    TokenRanks = 15, "token_ranks", Tokens;
    /// Texts of the records that have one.
    Texts = 16, "texts", Texts;
    /// What each label was computed in, if not all of the block in float32.
    ComputedIn = 17, "computed_in", Frame;
}

/// What a column's bytes are counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Token ids.
    Tokens,
    /// Positions, gold ids, top-k, log-sum-exp, gold logits.
    Labels,
    /// Texts of examples.
    Texts,
    /// Everything else.
    Frame,
}

impl Column {
    /// How many equal parts are compressed apart: byte planes have nothing in common.
    fn parts(self) -> usize {
        match self {
            Self::TopLogits | Self::LogSumExp | Self::GoldLogits => 4,
            _ => 1,
        }
    }
}

/// How a column's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain = 0,
    Zstd = 1,
    /// Range-coded: see [`crate::log::codec`].
    Range = 2,
}

impl Coding {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Plain),
            1 => Some(Self::Zstd),
            2 => Some(Self::Range),
            _ => None,
        }
    }
}

/// The columns of one block before compression.
#[derive(Debug, Default)]
pub(crate) struct Columns([ColumnBytes; Column::ALL.len()]);

/// A column's bytes: as they are, or range-coded.
#[derive(Clone, Debug, Default)]
pub(crate) struct ColumnBytes {
    /// Length before coding, if `bytes` are range-coded.
    pub(crate) coded_from: Option<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl ColumnBytes {
    /// The bytes of a column that is not range-coded.
    pub(crate) fn plain(self) -> Result<Vec<u8>, Damage> {
        match self.coded_from {
            None => Ok(self.bytes),
            Some(_) => Err(Damage::new("a range-coded column among others that are not")),
        }
    }

    /// The bytes of a range-coded column that stands for `length` bytes; an absent one too.
    pub(crate) fn coded(self, length: u64) -> Result<Vec<u8>, Damage> {
        match self.coded_from {
            Some(from) if from as u64 == length => Ok(self.bytes),
            None if self.bytes.is_empty() => Ok(self.bytes),
            found => Err(Damage::new(format!("a range-coded column of {found:?} bytes instead of {length}"))),
        }
    }
}

impl Columns {
    pub(crate) fn get(&self, column: Column) -> &ColumnBytes {
        &self.0[column as usize - 1]
    }

    pub(crate) fn get_mut(&mut self, column: Column) -> &mut Vec<u8> {
        &mut self.0[column as usize - 1].bytes
    }

    /// Sets a column that is range-coded already; it stands for `length` bytes.
    pub(crate) fn set_coded(&mut self, column: Column, bytes: Vec<u8>, length: u64) {
        self.0[column as usize - 1] = ColumnBytes { coded_from: Some(length as usize), bytes };
    }
}

/// Compresses columns; keeps zstd's tables between blocks.
pub(crate) struct Compressor(zstd::bulk::Compressor<'static>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    pub(crate) fn new() -> std::io::Result<Self> {
        zstd::bulk::Compressor::new(ZSTD_LEVEL).map(Self)
    }

    /// One zstd frame per part, or the bytes as they are where that is shorter.
    pub(crate) fn compress(&mut self, column: Column, raw: &[u8]) -> std::io::Result<(Coding, Vec<u8>)> {
        let mut stored = Vec::new();
        for part in raw.chunks((raw.len() / column.parts()).max(1)) {
            stored.extend(self.0.compress(part)?);
        }
        Ok(if stored.len() < raw.len() { (Coding::Zstd, stored) } else { (Coding::Plain, raw.to_vec()) })
    }

    /// One zstd frame.
    pub(crate) fn frame(&mut self, raw: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.compress(raw)
    }
}

thread_local! {
    /// zstd's tables take longer to make than a small column to decompress.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Undoes [`Compressor::compress`]. Allocates at most `raw_length`.
pub(crate) fn decompress(coding: Coding, stored: Vec<u8>, raw_length: usize) -> Result<Vec<u8>, Damage> {
    let raw = match coding {
        Coding::Plain => stored,
        Coding::Range => return Err(Damage::new("range-coded bytes where there are none")),
        Coding::Zstd => DECOMPRESSOR
            .with_borrow_mut(|decompressor| match decompressor {
                Some(decompressor) => decompressor.decompress(&stored, raw_length),
                None => decompressor.insert(zstd::bulk::Decompressor::new()?).decompress(&stored, raw_length),
            })
            .map_err(|error| Damage::new(format!("it does not decompress: {error}")))?,
    };
    if raw.len() != raw_length {
        return Err(Damage::new(format!("{} bytes after decompression instead of {raw_length}", raw.len())));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_stable() {
        for (index, column) in Column::ALL.iter().enumerate() {
            assert_eq!(*column as usize, index + 1);
            assert_eq!(Column::from_code(*column as u16), Some(*column));
        }
        assert_eq!(Column::from_code(0), None);
    }
}
