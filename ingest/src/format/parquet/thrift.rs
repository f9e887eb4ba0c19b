//! Walks over Thrift structures (compact protocol) without making anything of them, so that sizes in them can be looked
//! at before anyone reserves memory for what they promise.
//!
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// Structures and lists inside of each other, at most; Parquet's own go down to about 8.
const DEPTH_LIMIT: usize = 32;

/// Why a structure cannot be walked over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It goes on behind the end of the bytes.
    Short,
    /// It is none.
    Malformed,
}

/// What is met on the way; `path` holds the numbers of the fields that lead to it. Lists add nothing to it.
pub(super) enum Item {
    Integer(i64),
    /// A list or a set begins, of so many elements.
    List(u64),
    StructEnd,
}

/// Walks over the structure at the beginning of `bytes`; returns its length.
pub(super) fn walk(bytes: &[u8], visit: &mut dyn FnMut(&[i64], Item)) -> Result<usize, Problem> {
    let mut walker = Walker { bytes, at: 0, path: Vec::new(), depth: 0, visit };
    walker.structure()?;
    Ok(walker.at)
}

struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<i64>,
    depth: usize,
    visit: &'a mut dyn FnMut(&[i64], Item),
}

impl Walker<'_> {
    fn structure(&mut self) -> Result<(), Problem> {
        let mut field = 0;
        loop {
            let header = self.byte()?;
            if header == 0 {
                (self.visit)(&self.path, Item::StructEnd);
                return Ok(());
            }
            field = match header >> 4 {
                0 => self.integer()?,
                step => i64::checked_add(field, i64::from(step)).ok_or(Problem::Malformed)?,
            };
            self.path.push(field);
            match header & 0x0F {
                1 | 2 => {} // A truth value; the type is its value.
                kind => self.value(kind)?,
            }
            self.path.pop();
        }
    }

    fn value(&mut self, kind: u8) -> Result<(), Problem> {
        if self.depth == DEPTH_LIMIT {
            return Err(Problem::Malformed);
        }
        self.depth += 1;
        match kind {
            1..=3 => self.skip(1)?,
            4..=6 => {
                let value = self.integer()?;
                (self.visit)(&self.path, Item::Integer(value));
            }
            7 => self.skip(8)?,
            8 => {
                let length = self.varint()?;
                self.skip(length)?;
            }
            9 | 10 => {
                let header = self.byte()?;
                let size = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
                (self.visit)(&self.path, Item::List(size));
                for _ in 0..size {
                    self.value(header & 0x0F)?;
                }
            }
            11 => {
                let size = self.varint()?;
                let kinds = if size == 0 { 0 } else { self.byte()? };
                for _ in 0..size {
                    self.value(kinds >> 4)?;
                    self.value(kinds & 0x0F)?;
                }
            }
            12 => self.structure()?,
            _ => return Err(Problem::Malformed),
        }
        self.depth -= 1;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        let byte = *self.bytes.get(self.at).ok_or(Problem::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, length: u64) -> Result<(), Problem> {
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(Problem::Short);
        }
        self.at += length as usize;
        Ok(())
    }

    fn integer(&mut self) -> Result<i64, Problem> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> Result<u64, Problem> {
        varint(self.bytes, &mut self.at)
    }
}

/// The number at `at` (seven bits a byte, the lowest first), which moves behind it.
pub(super) fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, Problem> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or(Problem::Short)?;
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Problem::Malformed)
}
