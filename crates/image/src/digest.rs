//! Content digests: the names of everything in the store.
//!
//! Only SHA-256 is understood. The specification also registers SHA-512, but no registry in use hands it out,
//! and one algorithm means one spelling of a name, which is what makes a path from a digest safe.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

/// Length of the hexadecimal part.
const HEX_CHARS: usize = 64;

/// A SHA-256 digest. Written `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Another algorithm than SHA-256.
    #[error("digest algorithm `{0}` is not supported: use sha256")]
    Algorithm(String),
    /// Not 64 lower-case hexadecimal digits.
    #[error("a digest is written `sha256:` and 64 lower-case hexadecimal digits")]
    Shape,
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Finishes a running hash.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The hexadecimal part alone, the name of files in the store.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads the hexadecimal part alone.
    pub(crate) fn from_hex(text: &str) -> Result<Self, ParseError> {
        if text.len() != HEX_CHARS || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseError::Shape);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseError::Shape)?;
        Ok(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (algorithm, rest) = text.split_once(':').ok_or(ParseError::Shape)?;
        if algorithm != "sha256" {
            // Cut short: the text may come from a hostile manifest and ends up in a message.
            return Err(ParseError::Algorithm(algorithm.chars().take(32).collect()));
        }
        Self::from_hex(rest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_other_spellings() {
        let digest = Digest::of(b"tramontane");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert_eq!(
            digest
                .to_string()
                .to_uppercase()
                .replace("SHA", "sha")
                .parse::<Digest>(),
            Err(ParseError::Shape)
        );
        assert_eq!("sha256:ab".parse::<Digest>(), Err(ParseError::Shape));
        assert_eq!(
            format!("sha256:{}/", "a".repeat(63)).parse::<Digest>(),
            Err(ParseError::Shape)
        );
        assert_eq!(
            format!("sha512:{}", "a".repeat(128)).parse::<Digest>(),
            Err(ParseError::Algorithm("sha512".into()))
        );
    }
}
