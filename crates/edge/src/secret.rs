//! Salted hashes of the passwords and API keys that routes ask for. The controller calls [`hash`] when it builds a
//! table, admission calls [`matches`] per request.
//!
//! SHA-256 and no slow hash: the check runs on every request of a protected route. The salt keeps two services with
//! the same password from showing it, and the table file is readable by its owner alone.

use sha2::{Digest, Sha256};
use tram_types::routing::SecretHash;
use uuid::Uuid;

/// Salts and hashes a secret.
#[must_use]
pub fn hash(secret: &str) -> SecretHash {
    let salt = Uuid::new_v4().into_bytes();
    SecretHash {
        salt: hex::encode(salt),
        sha256: hex::encode(digest(&salt, secret.as_bytes())),
    }
}

/// A hash in bytes, ready to compare.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    salt: Vec<u8>,
    sha256: [u8; 32],
}

impl Compiled {
    /// `None` when the text is not hexadecimal of the right length.
    pub(crate) fn new(hash: &SecretHash) -> Option<Self> {
        Some(Self {
            salt: hex::decode(&hash.salt).ok()?,
            sha256: hex::decode(&hash.sha256).ok()?.try_into().ok()?,
        })
    }

    /// Compares in constant time.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        let got = digest(&self.salt, candidate);
        let difference = got
            .iter()
            .zip(&self.sha256)
            .fold(0u8, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

fn digest(salt: &[u8], secret: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(secret);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_its_own_hash_alone() {
        let hashed = hash("correct horse");
        let compiled = Compiled::new(&hashed).expect("our own hash");
        assert!(compiled.matches(b"correct horse"));
        assert!(!compiled.matches(b"correct horsf"));
        assert!(!compiled.matches(b""));
        assert_ne!(hashed.sha256, hash("correct horse").sha256, "salts differ");
    }

    #[test]
    fn a_mangled_hash_is_refused() {
        assert!(
            Compiled::new(&SecretHash {
                salt: "zz".into(),
                sha256: "00".into()
            })
            .is_none()
        );
    }
}
