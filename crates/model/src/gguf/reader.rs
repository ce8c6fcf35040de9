//! Reads the header of a GGUF, value by value, within bounds.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use super::{Error, limits};

/// A value that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A whole number that is not negative.
    Number(u64),
    /// Several of them.
    Numbers(Vec<u64>),
    /// A short text.
    Text(String),
    /// So many texts, none of them kept.
    Texts(u64),
    /// There, and not kept.
    Skipped,
}

impl Value {
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// How many texts a list has.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Texts(count) => Some(*count),
            _ => None,
        }
    }

    /// The number, or the largest of several.
    pub(super) fn largest(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Numbers(numbers) => numbers.iter().max().copied(),
            _ => None,
        }
    }

    /// The number `times` over, or the sum of several.
    pub(super) fn sum_over(&self, times: u64) -> u64 {
        match self {
            Self::Number(number) => number.saturating_mul(times),
            Self::Numbers(numbers) => numbers
                .iter()
                .fold(0, |sum: u64, number| sum.saturating_add(*number)),
            _ => 0,
        }
    }
}

/// Kinds of values, as the format numbers them.
mod kind {
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Bytes of a value of a kind that has always as many.
fn fixed_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | kind::BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A file that is read once, from its start, and counted.
pub(super) struct Reader<R> {
    file: BufReader<R>,
    /// Bytes read.
    at: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(file: R) -> Self {
        Self {
            file: BufReader::new(file),
            at: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The magic and the version; gives back how many tensors and keys follow.
    pub(super) fn start(&mut self) -> Result<(u64, u64), Error> {
        let mut magic = [0; 4];
        match self.exactly(&mut magic, "its first bytes") {
            Err(Error::Truncated(_)) => return Err(Error::Magic),
            other => other?,
        }
        if &magic != b"GGUF" {
            return Err(Error::Magic);
        }
        let version = self.u32("its version")?;
        if !(2..=3).contains(&version) {
            return Err(Error::Version(version));
        }
        let tensors = self.u64("its counts")?;
        let keys = self.u64("its counts")?;
        at_most("the number of tensors", tensors, limits::TENSORS_MAX)?;
        at_most("the number of keys", keys, limits::KEYS_MAX)?;
        Ok((tensors, keys))
    }

    /// All keys, with the values that are worth keeping.
    pub(super) fn keys(&mut self, count: u64) -> Result<BTreeMap<String, Value>, Error> {
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            let key = self.string("a key", limits::KEY_BYTES_MAX)?;
            let kind = self.u32("a key")?;
            let value = self.value(kind)?;
            if keys.contains_key(&key) {
                return Err(Error::Invalid(format!("key `{}` is there twice", shown(&key))));
            }
            keys.insert(key, value);
        }
        Ok(keys)
    }

    fn value(&mut self, kind: u32) -> Result<Value, Error> {
        const WHAT: &str = "a value";
        match kind {
            kind::STRING => {
                let length = self.u64(WHAT)?;
                if length > limits::KEPT_TEXT_BYTES_MAX {
                    self.skip(length, WHAT)?;
                    return Ok(Value::Skipped);
                }
                self.text(length, WHAT).map(Value::Text)
            }
            kind::ARRAY => self.list(),
            _ => Ok(match self.number(kind)? {
                Some(number) => Value::Number(number),
                None => Value::Skipped,
            }),
        }
    }

    fn list(&mut self) -> Result<Value, Error> {
        const WHAT: &str = "a list";
        let (kind, count) = (self.u32(WHAT)?, self.u64(WHAT)?);
        if kind == kind::STRING {
            // Each takes eight bytes or more, so that the bound of the header ends this.
            for _ in 0..count {
                let length = self.u64(WHAT)?;
                self.skip(length, WHAT)?;
            }
            return Ok(Value::Texts(count));
        }
        let Some(bytes) = fixed_bytes(kind) else {
            return Err(Error::Invalid(format!("a list has values of kind {kind}")));
        };
        if count > limits::KEPT_LIST_MAX {
            self.skip(count.saturating_mul(bytes), WHAT)?;
            return Ok(Value::Skipped);
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.extend(self.number(kind)?);
        }
        Ok(Value::Numbers(numbers))
    }

    /// A value of a kind that has always as many bytes; `None` for fractions and what is below zero.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, Error> {
        const WHAT: &str = "a value";
        let Some(length) = fixed_bytes(kind) else {
            return Err(Error::Invalid(format!("a value has the unknown kind {kind}")));
        };
        let mut bytes = [0; 8];
        let length = usize::try_from(length).unwrap_or(bytes.len());
        self.exactly(&mut bytes[..length], WHAT)?;
        let unsigned = u64::from_le_bytes(bytes);
        let [b0, b1, b2, b3, ..] = bytes;
        Ok(match kind {
            1 => u64::try_from(i8::from_le_bytes([b0])).ok(),
            3 => u64::try_from(i16::from_le_bytes([b0, b1])).ok(),
            5 => u64::try_from(i32::from_le_bytes([b0, b1, b2, b3])).ok(),
            11 => u64::try_from(i64::from_le_bytes(bytes)).ok(),
            6 | 12 => None,
            _ => Some(unsigned),
        })
    }

    /// A text of at most `max` bytes.
    pub(super) fn string(&mut self, what: &'static str, max: u64) -> Result<String, Error> {
        let length = self.u64(what)?;
        at_most("the length of a name", length, max)?;
        self.text(length, what)
    }

    /// `length` was checked.
    fn text(&mut self, length: u64, what: &'static str) -> Result<String, Error> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.exactly(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| Error::Invalid(format!("{what} is not UTF-8")))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.exactly(&mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.exactly(&mut bytes, what)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn exactly(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), Error> {
        self.count(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        self.file.read_exact(bytes).map_err(|error| cut_off(error, what))
    }

    fn skip(&mut self, length: u64, what: &'static str) -> Result<(), Error> {
        self.count(length)?;
        let skipped = io::copy(&mut self.file.by_ref().take(length), &mut io::sink())?;
        if skipped < length {
            return Err(Error::Truncated(what));
        }
        Ok(())
    }

    /// Before the bytes are read, so that a length that was made up costs nothing.
    fn count(&mut self, length: u64) -> Result<(), Error> {
        let at = self.at.saturating_add(length);
        at_most("the size of the header in bytes", at, limits::HEADER_BYTES_MAX)?;
        self.at = at;
        Ok(())
    }
}

fn cut_off(error: io::Error, what: &'static str) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated(what),
        _ => Error::Io(error),
    }
}

pub(super) fn at_most(what: &'static str, found: u64, max: u64) -> Result<(), Error> {
    if found > max {
        return Err(Error::Limit { what, found, max });
    }
    Ok(())
}

/// Longest part of a name that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 64;

/// A name of the file's, fit for a terminal.
pub(super) fn shown(name: &str) -> String {
    name.chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARACTERS)
        .collect()
}
