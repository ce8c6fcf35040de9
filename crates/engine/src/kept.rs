//! What of the cache outlives the program: sequences in one file, written at the end, read at the next start.
//!
//! The file is one that the program may only be lent (a mount), so it is written in place, once, from the front: the
//! sequences, an index of them, and last a trailer without which all of it counts for nothing. A program that is killed
//! while it writes leaves no trailer; a machine that loses power may leave one before bytes that never came to the disk,
//! which their checksums show. Nothing is read but the index until a prompt begins as one of the sequences does.
//!
//! It is a cache: whatever is wrong with it, the program starts without.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cache::{BLOCK, Token};

/// The last bytes of a whole file. The number counts changes of the format.
const MAGIC: [u8; 8] = *b"tramkv01";
/// Length of the index, its checksum, [`MAGIC`].
const TRAILER: u64 = 8 + 4 + 8;
/// An index is some bytes for each token; longer ones are not ours, and would be read into memory.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// A sequence in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// As [`crate::cache::Cache`] has it.
    scope: u64,
    tokens: Vec<Token>,
    /// Where its bytes are.
    offset: u64,
    bytes: u64,
    checksum: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// What computed it: this program with this model.
    identity: String,
    entries: Vec<Entry>,
}

/// The sequences that an earlier life of the program left.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    entries: Vec<Entry>,
    /// Those that were taken, which are not found again.
    taken: Vec<Entry>,
}

impl Kept {
    /// Looks what is there. Nothing where the file is none, is not whole, or is of another model or program.
    pub(crate) fn open(path: &Path, identity: &str) -> Self {
        let entries = match read_index(path) {
            Ok(Some(index)) if index.identity == identity => index.entries,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "prompts that were kept cannot be read");
                Vec::new()
            }
        };
        Self {
            path: path.to_owned(),
            entries,
            taken: Vec::new(),
        }
    }

    /// The sequence that has most of the beginning of `tokens`, and how much of it, in whole blocks; never all of them,
    /// since the last token has to be computed.
    pub(crate) fn find(&self, scope: u64, tokens: &[Token]) -> Option<(usize, usize)> {
        let most = tokens.len().saturating_sub(1) / BLOCK * BLOCK;
        let common = |entry: &Entry| {
            let pairs = entry.tokens.iter().zip(tokens);
            pairs.take_while(|(one, other)| one == other).count() / BLOCK * BLOCK
        };
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.scope == scope)
            .map(|(at, entry)| (at, common(entry).min(most)))
            .filter(|(_, common)| *common > 0)
            .max_by_key(|(_, common)| *common)
    }

    /// Tokens of a sequence that was found.
    pub(crate) fn length(&self, at: usize) -> usize {
        self.entries.get(at).map_or(0, |entry| entry.tokens.len())
    }

    /// Takes a sequence out: its tokens, and its bytes as a file at `to`. It is not found again, whatever becomes of it.
    pub(crate) fn take(&mut self, at: usize, to: &Path) -> io::Result<Vec<Token>> {
        if at >= self.entries.len() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entry = self.entries.swap_remove(at);
        let from = File::open(&self.path)?;
        let mut to = File::create(to)?;
        if copy(&from, &entry, &mut to)? != entry.checksum {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum is wrong",
            ));
        }
        let tokens = entry.tokens.clone();
        self.taken.push(entry);
        Ok(tokens)
    }
}

/// A file in the making. It is made beside and put in place at the end, since what is in place may be wanted still.
#[derive(Debug)]
pub(crate) struct Making {
    file: File,
    written: u64,
    bytes_max: u64,
    index: Index,
}

impl Making {
    /// `beside` is a file that is overwritten; what comes in has at most so many bytes, the index apart.
    pub(crate) fn new(beside: &Path, identity: String, bytes_max: u64) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(beside)?;
        Ok(Self {
            file,
            written: 0,
            bytes_max,
            index: Index {
                identity,
                entries: Vec::new(),
            },
        })
    }

    /// Whether a sequence is there already, as the beginning of another.
    pub(crate) fn has(&self, scope: u64, tokens: &[Token]) -> bool {
        let mut entries = self.index.entries.iter();
        entries.any(|entry| entry.scope == scope && entry.tokens.starts_with(tokens))
    }

    /// Whether so many bytes more have room.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.written.saturating_add(bytes) <= self.bytes_max
    }

    /// Adds a sequence whose bytes are in a file of its own. False when it has no room.
    pub(crate) fn add(&mut self, scope: u64, tokens: &[Token], from: &Path) -> io::Result<bool> {
        let from = File::open(from)?;
        let entry = Entry {
            scope,
            tokens: tokens.to_vec(),
            offset: 0,
            bytes: from.metadata()?.len(),
            checksum: 0,
        };
        self.append(&from, entry, None)
    }

    /// Adds what an earlier file has and is not here, as far as it has room: what nobody took, then what gave way in the
    /// cache since. None is begun after `until`.
    pub(crate) fn add_rest(&mut self, kept: &Kept, until: Instant) -> io::Result<()> {
        if kept.entries.is_empty() && kept.taken.is_empty() {
            return Ok(());
        }
        let from = File::open(&kept.path)?;
        for entry in kept.entries.iter().chain(&kept.taken) {
            if Instant::now() >= until {
                break;
            }
            if !self.has(entry.scope, &entry.tokens) {
                self.append(&from, entry.clone(), Some(entry.checksum))?;
            }
        }
        Ok(())
    }

    fn append(&mut self, from: &File, mut entry: Entry, known: Option<u32>) -> io::Result<bool> {
        if !self.has_room(entry.bytes) {
            return Ok(false);
        }
        let checksum = copy(from, &entry, &mut self.file)?;
        if known.is_some_and(|known| known != checksum) {
            // Damaged meanwhile; what was written of it stays unused.
            self.written += entry.bytes;
            return Ok(false);
        }
        entry.checksum = checksum;
        entry.offset = self.written;
        self.written += entry.bytes;
        self.index.entries.push(entry);
        Ok(true)
    }

    /// Puts it in place; how many sequences it has.
    pub(crate) fn put(mut self, path: &Path) -> io::Result<usize> {
        let index = serde_json::to_vec(&self.index)?;
        self.file.write_all(&index)?;
        self.file.write_all(&(index.len() as u64).to_le_bytes())?;
        self.file.write_all(&crc32fast::hash(&index).to_le_bytes())?;
        self.file.write_all(&MAGIC)?;
        self.file.seek(SeekFrom::Start(0))?;
        let mut place = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(path)?;
        io::copy(&mut self.file, &mut place)?;
        Ok(self.index.entries.len())
    }
}

/// Copies the bytes of an entry; their checksum.
fn copy(from: &File, entry: &Entry, to: &mut File) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let (mut at, end) = (entry.offset, entry.offset.saturating_add(entry.bytes));
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        from.read_exact_at(&mut chunk[..most], at)?;
        hasher.update(&chunk[..most]);
        to.write_all(&chunk[..most])?;
        at += most as u64;
    }
    Ok(hasher.finalize())
}

/// The index of a file. None where there is no file, or none that is whole.
fn read_index(path: &Path) -> io::Result<Option<Index>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let Some(trailer_at) = length.checked_sub(TRAILER) else {
        return Ok(None);
    };
    let (mut bytes, mut checksum, mut magic) = ([0; 8], [0; 4], [0; 8]);
    file.seek(SeekFrom::Start(trailer_at))?;
    for part in [&mut bytes[..], &mut checksum[..], &mut magic[..]] {
        file.read_exact(part)?;
    }
    let bytes = u64::from_le_bytes(bytes);
    let Some(index_at) = trailer_at.checked_sub(bytes) else {
        return Ok(None);
    };
    if magic != MAGIC || bytes > INDEX_BYTES_MAX {
        return Ok(None);
    }
    let mut index = vec![0; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(&mut index, index_at)?;
    if crc32fast::hash(&index) != u32::from_le_bytes(checksum) {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&index).ok())
}

#[cfg(test)]
mod tests;
