//! What coordinator and workers say to each other: batches and their labels, compressed.
//!
//! Numbers are little-endian; lists are preceded by their length. All that comes in is checked: a message may be anybody's.

use sha2::{Digest, Sha256};
use store::{ComputedIn, Label, MaskedCopy, SequenceNumber};

/// Version of the messages. Both sides have the same, or do not talk.
pub(super) const PROTOCOL: u32 = 2;
const LEVEL: i32 = 1;
/// No batch's labels come in more parts.
const MOST_PARTS: u32 = 1 << 16;
/// No message unpacks to more.
const MAX_BYTES: usize = 1 << 30;

/// A batch that is to be labelled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    /// What it is called.
    pub key: Key,
    /// Of the teacher as the run means it ([`TeacherSpec::digest`](super::TeacherSpec::digest)): who knows another one does not label it.
    pub spec: [u8; 16],
    /// The life of the coordinator that asks for it.
    pub life: u64,
    /// How often it was asked for before, in this life.
    pub attempt: u32,
    /// Given out more often than this, it has ended those who had it.
    pub most_deliveries: u32,
    /// Masked copies of one teacher.
    pub copies: Vec<MaskedCopy>,
}

/// What a batch is called, in this life of the coordinator and in the next: read from the same text, it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    /// The log's entries up to it wait for the batch.
    pub group_end: SequenceNumber,
    /// Of the teacher, as the run means it, and the copies.
    pub digest: [u8; 16],
}

/// What came of a batch, or of a part of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Whose it is.
    pub key: Key,
    /// Who worked on it.
    pub worker: String,
    /// Which part this is, of how many.
    pub part: (u32, u32),
    /// Labels of the part's copies; or why there are none.
    pub labels: Result<Vec<Label>, String>,
}

/// A message that is not one of ours, or is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this version, or damaged: {0}")]
pub(super) struct WireError(pub(super) &'static str);

impl Key {
    /// The key of a batch of a teacher.
    #[must_use]
    pub(super) fn of(group_end: SequenceNumber, spec: &[u8; 16], copies: &[&MaskedCopy]) -> Self {
        let mut writer = Writer { bytes: spec.to_vec() };
        copies.iter().for_each(|copy| writer.copy(copy));
        let whole: [u8; 32] = Sha256::digest(&writer.bytes).into();
        let mut digest = [0; 16];
        digest.copy_from_slice(&whole[..16]);
        Self { group_end, digest }
    }

    /// The key as a word.
    #[must_use]
    pub(super) fn name(&self) -> String {
        let digest: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{digest}", self.group_end)
    }
}

impl Work {
    /// As a message.
    #[must_use]
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.key(&self.key);
        writer.bytes.extend(self.spec);
        writer.bytes.extend(self.life.to_le_bytes());
        writer.number(self.attempt);
        writer.number(self.most_deliveries);
        writer.number(self.copies.len() as u32);
        self.copies.iter().for_each(|copy| writer.copy(copy));
        writer.pack()
    }

    /// From a message.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn decode(message: &[u8]) -> Result<Self, WireError> {
        Reader::read(message, |reader| {
            let (key, spec, life) = (reader.key()?, reader.take()?, u64::from_le_bytes(reader.take()?));
            let (attempt, most_deliveries) = (reader.number()?, reader.number()?);
            let count = reader.number()?;
            let copies = (0..count).map(|_| reader.copy()).collect::<Result<_, _>>()?;
            Ok(Self { key, spec, life, attempt, most_deliveries, copies })
        })
    }
}

impl Outcome {
    /// As a message.
    #[must_use]
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.key(&self.key);
        writer.text(&self.worker);
        writer.number(self.part.0);
        writer.number(self.part.1);
        match &self.labels {
            Ok(labels) => {
                writer.number(1);
                writer.number(labels.len() as u32);
                labels.iter().for_each(|label| writer.label(label));
            }
            Err(reason) => {
                writer.number(0);
                writer.text(reason);
            }
        }
        writer.pack()
    }

    /// From a message.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn decode(message: &[u8]) -> Result<Self, WireError> {
        Reader::read(message, |reader| {
            let (key, worker) = (reader.key()?, reader.text()?);
            let part = (reader.number()?, reader.number()?);
            if part.0 >= part.1 || part.1 > MOST_PARTS {
                return Err(WireError("a part beyond the last"));
            }
            let labels = match reader.number()? {
                1 => {
                    let count = reader.number()?;
                    Ok((0..count).map(|_| reader.label()).collect::<Result<_, _>>()?)
                }
                0 => Err(reader.text()?),
                _ => return Err(WireError("neither labels nor a reason")),
            };
            Ok(Self { key, worker, part, labels })
        })
    }
}

#[derive(Debug, Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn number(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn key(&mut self, key: &Key) {
        self.bytes.extend(key.group_end.0.to_le_bytes());
        self.bytes.extend(key.digest);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.bytes.extend(text.as_bytes());
    }

    fn numbers(&mut self, numbers: &[u32]) {
        self.number(numbers.len() as u32);
        numbers.iter().for_each(|number| self.number(*number));
    }

    fn floats(&mut self, floats: &[f32]) {
        self.number(floats.len() as u32);
        floats.iter().for_each(|float| self.number(float.to_bits()));
    }

    fn copy(&mut self, copy: &MaskedCopy) {
        self.number(u32::from(copy.teacher));
        self.numbers(&copy.token_ids);
        self.numbers(&copy.masked_positions);
        self.numbers(&copy.gold_ids);
    }

    fn label(&mut self, label: &Label) {
        self.number(label.top_k as u32);
        self.numbers(&label.top_ids);
        self.floats(&label.top_logits);
        self.floats(&label.log_sum_exp);
        self.floats(&label.gold_logits);
        self.number(u32::from(label.computed_in.code()));
    }

    fn pack(self) -> Vec<u8> {
        let mut message = PROTOCOL.to_le_bytes().to_vec();
        match zstd::bulk::compress(&self.bytes, LEVEL) {
            Ok(packed) => message.extend(packed),
            Err(error) => panic!("zstd does not compress {} bytes: {error}", self.bytes.len()),
        }
        message
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    /// Unpacks a message and reads all of it.
    fn read<T>(message: &[u8], read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>) -> Result<T, WireError> {
        let (version, packed) = message.split_first_chunk::<4>().ok_or(WireError("it is too short"))?;
        if u32::from_le_bytes(*version) != PROTOCOL {
            return Err(WireError("another version"));
        }
        let bytes = zstd::bulk::Decompressor::upper_bound(packed).ok_or(WireError("its size is not told"))?;
        if bytes > MAX_BYTES {
            return Err(WireError("it is too large"));
        }
        let bytes = zstd::bulk::decompress(packed, bytes).map_err(|_| WireError("it does not unpack"))?;
        let mut reader = Reader { bytes: &bytes };
        let value = read(&mut reader)?;
        if reader.bytes.is_empty() { Ok(value) } else { Err(WireError("there is more in it")) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) = self.bytes.split_first_chunk::<N>().ok_or(WireError("it ends too early"))?;
        self.bytes = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u32, WireError> {
        self.take().map(u32::from_le_bytes)
    }

    fn key(&mut self) -> Result<Key, WireError> {
        Ok(Key { group_end: SequenceNumber(u64::from_le_bytes(self.take()?)), digest: self.take()? })
    }

    /// So many bytes.
    fn bytes(&mut self, count: usize) -> Result<&[u8], WireError> {
        let (first, rest) = self.bytes.split_at_checked(count).ok_or(WireError("it ends too early"))?;
        self.bytes = rest;
        Ok(first)
    }

    fn text(&mut self) -> Result<String, WireError> {
        let count = self.number()? as usize;
        let bytes = self.bytes(count)?.to_vec();
        String::from_utf8(bytes).map_err(|_| WireError("a text is not UTF-8"))
    }

    fn numbers(&mut self) -> Result<Vec<u32>, WireError> {
        let count = self.number()? as usize;
        let bytes = self.bytes(count.checked_mul(4).ok_or(WireError("it ends too early"))?)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    fn floats(&mut self) -> Result<Vec<f32>, WireError> {
        Ok(self.numbers()?.into_iter().map(f32::from_bits).collect())
    }

    fn copy(&mut self) -> Result<MaskedCopy, WireError> {
        let teacher = u16::try_from(self.number()?).map_err(|_| WireError("a teacher's number is too large"))?;
        let copy = MaskedCopy {
            teacher,
            token_ids: self.numbers()?,
            masked_positions: self.numbers()?,
            gold_ids: self.numbers()?,
            label: None,
        };
        let length = copy.token_ids.len();
        let ascending = copy.masked_positions.is_sorted_by(|a, b| a < b);
        let within = copy.masked_positions.iter().all(|position| (*position as usize) < length);
        let sound = length > 0 && ascending && within && copy.gold_ids.len() == copy.masked_positions.len();
        if sound { Ok(copy) } else { Err(WireError("a copy's lists do not fit each other")) }
    }

    fn computed_in(&mut self) -> Result<ComputedIn, WireError> {
        let code = u8::try_from(self.number()?).ok();
        code.and_then(ComputedIn::from_code).ok_or(WireError("what a label was computed in is not known"))
    }

    fn label(&mut self) -> Result<Label, WireError> {
        let label = Label {
            top_k: self.number()? as usize,
            top_ids: self.numbers()?,
            top_logits: self.floats()?,
            log_sum_exp: self.floats()?,
            gold_logits: self.floats()?,
            computed_in: self.computed_in()?,
        };
        let positions = label.log_sum_exp.len();
        let sound = label.top_k > 0
            && label.gold_logits.len() == positions
            && Some(label.top_ids.len()) == positions.checked_mul(label.top_k)
            && label.top_logits.len() == label.top_ids.len();
        if sound { Ok(label) } else { Err(WireError("a label's lists do not fit each other")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        let copy = |first: u32| MaskedCopy {
            teacher: 3,
            token_ids: (first..first + 9).collect(),
            masked_positions: vec![1, 4, 7],
            gold_ids: vec![5, 6, first],
            label: None,
        };
        let copies = vec![copy(10), copy(4_000_000_000)];
        let spec = [9; 16];
        let key = Key::of(SequenceNumber(77), &spec, &copies.iter().collect::<Vec<_>>());
        Work { key, spec, life: 5, attempt: 1, most_deliveries: 20, copies }
    }

    fn outcome(labels: Result<Vec<Label>, String>) -> Outcome {
        Outcome { key: work().key, worker: "gpu-7/123".to_owned(), part: (0, 2), labels }
    }

    fn label() -> Label {
        Label {
            top_k: 2,
            top_ids: vec![9, 8, 7, 6],
            top_logits: vec![3.5, -0.0, f32::MIN_POSITIVE, -7.25],
            log_sum_exp: vec![4.0, 5.0],
            gold_logits: vec![0.5, -1.5],
            computed_in: ComputedIn::Float16,
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        assert_eq!(Work::decode(&work().encode()), Ok(work()));
        for labels in [Ok(vec![label(), label()]), Ok(Vec::new()), Err("no memory".to_owned())] {
            assert_eq!(Outcome::decode(&outcome(labels.clone()).encode()), Ok(outcome(labels)));
        }
    }

    #[test]
    fn damaged_messages_are_refused() {
        let whole = work().encode();
        for end in 0..whole.len() {
            assert!(Work::decode(&whole[..end]).is_err(), "the first {end} bytes");
        }
        let mut other = whole.clone();
        other[0] ^= 1;
        assert!(Work::decode(&other).is_err_and(|error| error.to_string().contains("another version")));
        assert!(Outcome::decode(&whole).is_err() && Work::decode(&outcome(Ok(vec![label()])).encode()).is_err());
        let short = Label { gold_logits: vec![0.5], ..label() };
        assert!(Outcome::decode(&outcome(Ok(vec![short])).encode()).is_err());
        let mut beyond = work();
        beyond.copies[0].masked_positions[2] = 9;
        assert!(Work::decode(&beyond.encode()).is_err());
    }

    #[test]
    fn a_key_says_what_is_in_the_batch() {
        let Work { key, spec, copies, .. } = work();
        let of = |copies: &[MaskedCopy]| Key::of(SequenceNumber(77), &spec, &copies.iter().collect::<Vec<_>>());
        assert_eq!(of(&copies), key);
        assert_ne!(Key::of(SequenceNumber(77), &[8; 16], &copies.iter().collect::<Vec<_>>()), key);
        let mut other = copies.clone();
        other[1].gold_ids[0] += 1;
        assert_ne!(of(&other), key);
        other = copies;
        other.reverse();
        assert_ne!(of(&other), key);
    }
}
