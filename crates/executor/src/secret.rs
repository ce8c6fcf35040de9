//! The secret of the sandbox, of which this program keeps a digest alone.
//!
//! Used by `auth`, `identity` and `blind`. A copy of a running sandbox has the memory of the first one, and whoever is
//! root in it may read that: with the secret in it, the owner of a copy could drive the sandbox that it was made of. So
//! the one design choice to know: a secret is turned into its SHA-256 where it arrives, and the bytes that it came in are
//! overwritten. Clients make secrets of 32 random bytes, which a digest does not give away.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// What a digest in text begins with.
const PREFIX: &str = "sha256:";
const BYTES: usize = 32;
/// More of the stack than computing a digest takes.
const STACK_BYTES: usize = 8192;

/// What is kept of a secret.
#[derive(Clone, Copy)]
pub(crate) struct Digest([u8; BYTES]);

impl Digest {
    /// Of a secret. The caller overwrites that.
    pub(crate) fn of(secret: &[u8]) -> Self {
        let digest = Self(Sha256::digest(secret).into());
        overwrite_stack();
        digest
    }

    /// Of a secret that nobody needs any more.
    pub(crate) fn of_last(mut secret: String) -> Self {
        let digest = Self::of(secret.as_bytes());
        secret.zeroize();
        digest
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let text = text.strip_prefix(PREFIX)?.as_bytes();
        let mut bytes = [0; BYTES];
        if text.len() != 2 * BYTES {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            let plain = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(pair, 16).ok().filter(|_| plain)?;
        }
        Some(Self(bytes))
    }

    /// What was written down: a digest, or by an earlier version the secret itself.
    pub(crate) fn written(text: String) -> Self {
        Self::read(&text).unwrap_or_else(|| Self::of_last(text))
    }

    /// In constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digest")
    }
}

/// Overwrites what functions that have returned left on the stack: computing a digest copies what it is of.
#[inline(never)]
fn overwrite_stack() {
    let mut bytes = [0xff_u8; STACK_BYTES];
    std::hint::black_box(&mut bytes);
    bytes.zeroize();
    std::hint::black_box(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_was_written() {
        let digest = Digest::of(b"secret");
        let text = digest.to_string();
        // As every other implementation has it.
        assert_eq!(
            text,
            "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
        );
        assert!(Digest::read(&text).unwrap().is(&digest));
        assert!(Digest::written(text.clone()).is(&digest));
        assert!(Digest::written("secret".to_owned()).is(&digest));
        assert!(!Digest::of(b"secret ").is(&digest));
        for wrong in [
            "",
            "sha256:",
            "secret",
            &text[1..],
            &text[..70],
            &text.replace("2b", "+b"),
        ] {
            assert!(Digest::read(wrong).is_none(), "{wrong}");
        }
    }
}
