//! The keys that secrets are encrypted with, in a file outside of the database's directory.
//!
//! XChaCha20-Poly1305 with a random 24-byte nonce for every value. The associated data binds a ciphertext to its
//! organization and its secret, so that a row copied over another does not decrypt. Each line of the file is one
//! key; the last one encrypts, all of them decrypt, which is what makes rotation possible without a stop.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use tram_types::{OrganizationId, SecretId};

/// First line of the file: what it is and its version.
const HEADER: &str = "tram-keyring 1";
/// What a key is, in bytes.
const KEY_BYTES: usize = 32;
/// What a nonce is, in bytes.
const NONCE_BYTES: usize = 24;
/// What a key's id is, in random bytes: enough not to meet itself, short enough to read aloud.
const KEY_ID_BYTES: usize = 4;
/// Separates these ciphertexts from any other use of the same key.
const DOMAIN: &[u8] = b"tram-secret-1";
/// Longest file that is read: far more keys than anybody rotates through, and no memory for a wrong path.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the keys are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file. Keep a copy of it apart from the backups of the database.
    pub path: PathBuf,
    /// Whether the file is made, with a new key, when it is not there and no secret needs it.
    pub create: bool,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there.
    #[error("the key file {path} is not there; restore it from its backup: without it no secret can be read")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the file.
    #[error("the key file {path} has mode {mode:04o}, so others can read the keys; run `chmod 600 {path}`")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns the file.
    #[error("the key file {path} belongs to user {owner}, not to the user who runs tram; run `chown` on it")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's id.
        owner: u32,
    },
    /// The file is not a key file.
    #[error("line {line} of the key file {path} is wrong: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A secret was encrypted with a key that the file does not have.
    #[error(
        "the key `{key_id}` is not in the key file {path}, and secrets are encrypted with it; \
         restore the file from a backup that has it"
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key's id.
        key_id: String,
    },
    /// A ciphertext was altered, cut off, or belongs to another secret.
    #[error("secret {secret} cannot be decrypted: its ciphertext was altered or belongs to another secret")]
    Altered {
        /// Which.
        secret: SecretId,
    },
    /// The value cannot be encrypted.
    #[error("the value of secret {secret} is too long to be encrypted")]
    TooLong {
        /// Which.
        secret: SecretId,
    },
    /// The file cannot be read or written.
    #[error("the key file {path} failed while {doing}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

struct Key {
    id: String,
    bytes: [u8; KEY_BYTES],
}

/// An encrypted value, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// Which key.
    pub(crate) key_id: String,
    /// Base64 of nonce and ciphertext.
    pub(crate) ciphertext: String,
}

/// The keys.
pub(crate) struct Keyring {
    path: PathBuf,
    keys: Vec<Key>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(|key| key.id.as_str()).collect();
        formatter
            .debug_struct("Keyring")
            .field("path", &self.path)
            .field("keys", &ids)
            .finish()
    }
}

impl Keyring {
    /// Reads the file; makes it when that is allowed and it is not there.
    pub(crate) fn open(path: &Path, create: bool) -> Result<Self, Error> {
        let failed = |doing| {
            let path = path.to_owned();
            move |source| Error::File { path, doing, source }
        };
        if !path.exists() {
            if !create {
                return Err(Error::Missing {
                    path: path.to_owned(),
                });
            }
            let keyring = Self {
                path: path.to_owned(),
                keys: vec![Key::random()],
            };
            keyring.write().map_err(failed("being made"))?;
            return Ok(keyring);
        }
        let metadata = fs::metadata(path).map_err(failed("being looked at"))?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        check_owner(path, metadata.uid())?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(Error::Malformed {
                path: path.to_owned(),
                line: 1,
                problem: "the file is far too long to be a key file",
            });
        }
        let text = fs::read_to_string(path).map_err(failed("being read"))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let malformed = |line, problem| Error::Malformed {
            path: path.to_owned(),
            line,
            problem,
        };
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some(HEADER) {
            return Err(malformed(1, "it must read `tram-keyring 1`"));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (index, line) in lines {
            if line.is_empty() {
                continue;
            }
            let (id, encoded) = line
                .split_once(' ')
                .ok_or_else(|| malformed(index + 1, "expected a key id, a space and a key in base64"))?;
            let bytes = BASE64
                .decode(encoded)
                .ok()
                .and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok())
                .ok_or_else(|| malformed(index + 1, "the key must be 32 bytes in base64"))?;
            if keys.iter().any(|key| key.id == id) {
                return Err(malformed(index + 1, "this key id is there twice"));
            }
            keys.push(Key {
                id: id.to_owned(),
                bytes,
            });
        }
        if keys.is_empty() {
            return Err(malformed(2, "there must be at least one key"));
        }
        Ok(Self {
            path: path.to_owned(),
            keys,
        })
    }

    /// Writes the file whole, beside itself first, so that a crash leaves the old one or the new one.
    fn write(&self) -> std::io::Result<()> {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("/"));
        if !directory.exists() {
            if let Some(above) = directory.parent() {
                fs::create_dir_all(above)?;
            }
            fs::DirBuilder::new().mode(0o700).create(directory)?;
        }
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        let mut text = format!("{HEADER}\n");
        for key in &self.keys {
            text.push_str(&format!("{} {}\n", key.id, BASE64.encode(key.bytes)));
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        fs::File::open(directory)?.sync_all()
    }

    /// Adds a key that encrypts from now on. The file is safe on the disk before the key is used. What another
    /// process added meanwhile is kept: the file is read again under a lock.
    pub(crate) fn add_key(&mut self) -> Result<(), Error> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".lock");
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(beside)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| self.file_error("being locked", source))?;
        self.reload()?;
        self.keys.push(Key::random());
        let written = self.write();
        drop(lock);
        written.map_err(|source| {
            self.keys.pop();
            self.file_error("being written", source)
        })
    }

    fn file_error(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::File {
            path: self.path.clone(),
            doing,
            source,
        }
    }

    /// Reads the file again when it has keys that this process does not: another one rotated them.
    pub(crate) fn reload(&mut self) -> Result<(), Error> {
        *self = Self::open(&self.path, false)?;
        Ok(())
    }

    /// The id of the key that encrypts.
    pub(crate) fn newest(&self) -> &str {
        self.keys.last().map_or("", |key| key.id.as_str())
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, key_id: &str) -> bool {
        self.keys.iter().any(|key| key.id == key_id)
    }

    fn unknown(&self, key_id: &str) -> Error {
        Error::UnknownKey {
            path: self.path.clone(),
            key_id: key_id.to_owned(),
        }
    }

    /// That every one of these keys is there.
    pub(crate) fn check(&self, key_ids: &[String]) -> Result<(), Error> {
        match key_ids.iter().find(|key_id| !self.has(key_id)) {
            Some(key_id) => Err(self.unknown(key_id)),
            None => Ok(()),
        }
    }

    /// Encrypts with the newest key.
    pub(crate) fn seal(
        &self,
        organization: OrganizationId,
        secret: SecretId,
        value: &[u8],
    ) -> Result<Sealed, Error> {
        let key = self.keys.last().ok_or_else(|| self.unknown(""))?;
        let mut nonce = [0_u8; NONCE_BYTES];
        rand::fill(&mut nonce);
        let aad = associated_data(organization, secret);
        let encrypted = key
            .cipher()
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: value,
                    aad: &aad,
                },
            )
            .map_err(|_| Error::TooLong { secret })?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&encrypted);
        Ok(Sealed {
            key_id: key.id.clone(),
            ciphertext: BASE64.encode(whole),
        })
    }

    /// Decrypts.
    pub(crate) fn open_sealed(
        &self,
        organization: OrganizationId,
        secret: SecretId,
        sealed: &Sealed,
    ) -> Result<Vec<u8>, Error> {
        let key = self
            .keys
            .iter()
            .find(|key| key.id == sealed.key_id)
            .ok_or_else(|| self.unknown(&sealed.key_id))?;
        let altered = || Error::Altered { secret };
        let whole = BASE64.decode(&sealed.ciphertext).map_err(|_| altered())?;
        let (nonce, encrypted) = whole.split_first_chunk::<NONCE_BYTES>().ok_or_else(altered)?;
        let aad = associated_data(organization, secret);
        key.cipher()
            .decrypt(
                &XNonce::from(*nonce),
                Payload {
                    msg: encrypted,
                    aad: &aad,
                },
            )
            .map_err(|_| altered())
    }
}

impl Key {
    fn random() -> Self {
        let mut id = [0_u8; KEY_ID_BYTES];
        rand::fill(&mut id);
        let mut bytes = [0_u8; KEY_BYTES];
        rand::fill(&mut bytes);
        Self {
            id: hex::encode(id),
            bytes,
        }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.bytes.into())
    }
}

/// Both parts have a fixed length, so no two pairs give the same bytes.
fn associated_data(organization: OrganizationId, secret: SecretId) -> Vec<u8> {
    let mut data = DOMAIN.to_vec();
    data.extend_from_slice(organization.uuid().as_bytes());
    data.extend_from_slice(secret.uuid().as_bytes());
    data
}

/// The file must be ours (or root's, who can read everything anyhow). The owner of `/proc/self` is this process's
/// user, without a system call that safe Rust does not have.
fn check_owner(path: &Path, owner: u32) -> Result<(), Error> {
    let ours = fs::metadata("/proc/self").map(|metadata| metadata.uid());
    match ours {
        Ok(ours) if owner != ours && owner != 0 => Err(Error::Owner {
            path: path.to_owned(),
            owner,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn keyring() -> (tempfile::TempDir, Keyring) {
        let directory = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(&directory.path().join("keys/keyring"), true).unwrap();
        (directory, keyring)
    }

    #[test]
    fn a_value_reads_back_and_is_bound_to_its_secret() {
        let (_directory, keyring) = keyring();
        let (organization, secret) = (OrganizationId::random(), SecretId::random());
        let sealed = keyring.seal(organization, secret, b"hunter2").unwrap();
        assert!(!sealed.ciphertext.contains("hunter2"));
        assert_eq!(
            keyring.open_sealed(organization, secret, &sealed).unwrap(),
            b"hunter2"
        );
        assert_ne!(
            keyring.seal(organization, secret, b"hunter2").unwrap().ciphertext,
            sealed.ciphertext
        );
        for (organization, secret) in [
            (OrganizationId::random(), secret),
            (organization, SecretId::random()),
        ] {
            assert!(matches!(
                keyring.open_sealed(organization, secret, &sealed),
                Err(Error::Altered { .. })
            ));
        }
    }

    #[test]
    fn every_altered_byte_is_noticed() {
        let (_directory, keyring) = keyring();
        let (organization, secret) = (OrganizationId::random(), SecretId::random());
        let sealed = keyring.seal(organization, secret, b"v").unwrap();
        let whole = BASE64.decode(&sealed.ciphertext).unwrap();
        for index in 0..whole.len() {
            let mut altered = whole.clone();
            altered[index] ^= 1;
            let altered = Sealed {
                ciphertext: BASE64.encode(altered),
                ..sealed.clone()
            };
            assert!(keyring.open_sealed(organization, secret, &altered).is_err());
        }
        let short = Sealed {
            ciphertext: BASE64.encode(&whole[..10]),
            ..sealed
        };
        assert!(keyring.open_sealed(organization, secret, &short).is_err());
    }

    #[test]
    fn a_new_key_encrypts_and_the_old_one_still_decrypts() {
        let (_directory, mut keyring) = keyring();
        let (organization, secret) = (OrganizationId::random(), SecretId::random());
        let old = keyring.seal(organization, secret, b"v").unwrap();
        keyring.add_key().unwrap();
        let new = keyring.seal(organization, secret, b"v").unwrap();
        assert_ne!(old.key_id, new.key_id);
        let again = Keyring::open(&keyring.path, false).unwrap();
        assert_eq!(again.newest(), new.key_id);
        for sealed in [old, new] {
            assert_eq!(again.open_sealed(organization, secret, &sealed).unwrap(), b"v");
        }
    }

    #[test]
    fn keys_that_two_processes_add_are_all_kept() {
        let (_directory, mut one) = keyring();
        let mut two = Keyring::open(&one.path, false).unwrap();
        one.add_key().unwrap();
        two.add_key().unwrap();
        let both = Keyring::open(&one.path, false).unwrap();
        assert_eq!(both.keys.len(), 3);
        assert!(both.has(one.newest()) && both.has(two.newest()));
        assert_eq!(
            fs::metadata(one.path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_directory, keyring) = keyring();
        assert_eq!(fs::metadata(&keyring.path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&keyring.path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keyring::open(&keyring.path, true).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_wrong_file_says_which_line() {
        let path = Path::new("/k");
        let line = |text: &str| match Keyring::parse(path, text).unwrap_err() {
            Error::Malformed { line, .. } => line,
            other => panic!("{other}"),
        };
        assert_eq!(line("nonsense"), 1);
        assert_eq!(line("tram-keyring 1\n"), 2);
        assert_eq!(line("tram-keyring 1\nid AAAA\n"), 2);
        let key = BASE64.encode([1; KEY_BYTES]);
        assert_eq!(line(&format!("tram-keyring 1\na {key}\na {key}\n")), 3);
        let missing = Keyring::open(Path::new("/nowhere/at/all"), false).unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }));
    }
}
