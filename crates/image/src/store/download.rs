//! Fetches one layer to its place, continuing what an earlier attempt or process left beside it. The callers are the store
//! (`blobs/` and `partial/`) and [`crate::artifact`].
//!
//! The file is appended to and hashed by one writer that holds a lock on it; on opening, what is there is read
//! back into the hash. Whatever the network or a crash did to it, only bytes that give the digest get the final
//! name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::layout;
use crate::digest::Digest;
use crate::error::Error;
use crate::floor::{CHECK_BYTES, Floor};
use crate::limits::{MAX_BLOB_CONNECTIONS, PROGRESS_BYTES};
use crate::manifest::Descriptor;
use crate::registry::{BlobStream, Retries, Source};

/// Bytes gathered before they are handed to the disk.
const BATCH_BYTES: usize = 1 << 20;
const WHAT: &str = "a layer";

/// Where a blob is kept, and where while it is on its way: on the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) blob: PathBuf,
    pub(crate) partial: PathBuf,
    pub(crate) floor: Arc<Floor>,
}

/// Fetches `descriptor` unless it is here. Progress counts bytes on disk.
pub(crate) async fn download(
    place: Place,
    source: Arc<Source>,
    descriptor: Descriptor,
    bytes_done: watch::Sender<u64>,
) -> Result<(), Error> {
    if place.blob.exists() {
        return Ok(());
    }
    let (path, size) = (place.partial, descriptor.size);
    let mut partial = blocking(move || Partial::open(path, size, place.floor)).await?;
    if place.blob.exists() {
        // Another writer held the lock and has finished.
        return Ok(());
    }
    // Contents from another time or another host may be what does not fit; then a fresh start is worth one try.
    let mut mixed = partial.bytes > 0;
    let mut retries = Retries::default();
    let mut connections = 0;
    loop {
        bytes_done.send_replace(partial.bytes);
        let before = partial.bytes;
        let mut last = None;
        let mut registry = source.registry().to_owned();
        for endpoint in source.layer_endpoints() {
            if partial.bytes >= size {
                break;
            }
            connections += 1;
            let fetched;
            (partial, fetched) = fetch(&source, endpoint, &descriptor, partial, &bytes_done).await?;
            registry.clone_from(&endpoint.host);
            if let Err(error) = fetched {
                tracing::debug!(host = endpoint.host, layer = %descriptor.digest, %error, "layer download interrupted");
                mixed |= partial.bytes > 0;
                last = Some(error);
            }
        }
        if partial.bytes >= size {
            let actual = partial.digest();
            if actual == descriptor.digest {
                return blocking(move || partial.finish(place.blob)).await;
            }
            let expected = descriptor.digest;
            partial = blocking(move || partial.restart()).await?;
            let error = Error::DigestMismatch {
                what: WHAT,
                registry,
                expected,
                actual,
            };
            if !mixed {
                partial.remove();
                return Err(error);
            }
            mixed = false;
            continue;
        }
        if partial.bytes > before + PROGRESS_BYTES && connections < MAX_BLOB_CONNECTIONS {
            retries.made_progress();
        }
        // Without an error the stream ended early: the registry has less than it promised.
        let error = last.unwrap_or(Error::SizeMismatch {
            what: WHAT,
            registry,
            expected_bytes: size,
            actual_bytes: partial.bytes,
        });
        if matches!(error, Error::DiskFull { .. } | Error::SizeMismatch { .. }) {
            partial.remove();
            return Err(error);
        }
        retries.pause(error).await?;
    }
}

/// One connection's worth. The outer error is this machine's and final; the inner one the endpoint's.
async fn fetch(
    source: &Source,
    endpoint: &crate::registry::Endpoint,
    descriptor: &Descriptor,
    mut partial: Partial,
    bytes_done: &watch::Sender<u64>,
) -> Result<(Partial, Result<(), Error>), Error> {
    let mut stream = match source.layer(endpoint, &descriptor.digest, partial.bytes).await {
        Ok(stream) => stream,
        Err(error) => return Ok((partial, Err(error))),
    };
    if stream.offset != partial.bytes {
        // It ignores ranges, or answers another one: only the start is of use.
        partial = blocking(move || partial.restart()).await?;
        if stream.offset != 0 {
            stream = match source.layer(endpoint, &descriptor.digest, 0).await {
                Ok(stream) => stream,
                Err(error) => return Ok((partial, Err(error))),
            };
        }
        if stream.offset != 0 {
            let reason = "it sends another part of a layer than it was asked for".to_owned();
            return Ok((
                partial,
                Err(Error::Protocol {
                    registry: endpoint.host.clone(),
                    reason,
                }),
            ));
        }
    }
    loop {
        let (batch, ended) = batch(&mut stream).await;
        let total = partial.bytes + batch.len() as u64;
        if total > descriptor.size {
            partial = blocking(move || partial.restart()).await?;
            let error = Error::SizeMismatch {
                what: WHAT,
                registry: stream.registry().to_owned(),
                expected_bytes: descriptor.size,
                actual_bytes: total,
            };
            return Ok((partial, Err(error)));
        }
        if !batch.is_empty() {
            partial = blocking(move || partial.append(&batch)).await?;
            bytes_done.send_replace(partial.bytes);
        }
        match ended {
            None => {}
            Some(outcome) => return Ok((partial, outcome)),
        }
    }
}

/// Gathers bytes until there is a batch or the stream ends; bytes before an error count.
async fn batch(stream: &mut BlobStream) -> (Vec<u8>, Option<Result<(), Error>>) {
    let mut bytes = Vec::with_capacity(BATCH_BYTES);
    while bytes.len() < BATCH_BYTES {
        match stream.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, Some(Ok(()))),
            Err(error) => return (bytes, Some(Err(error))),
        }
    }
    (bytes, None)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

/// A layer on its way to disk.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
    floor: Arc<Floor>,
    /// Bytes since the disk was asked for its room.
    unchecked: u64,
}

impl Partial {
    /// Opens what is there, waiting for another writer of this process to let go, and hashes it.
    fn open(path: PathBuf, size: u64, floor: Arc<Floor>) -> Result<Self, Error> {
        loop {
            let failed = |error: io::Error| Error::io("opening", &path, error);
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
            // The writer before may have renamed or removed the file this lock is on.
            let (own, there) = (rustix::fs::fstat(&file), rustix::fs::stat(&path));
            match (own, there) {
                (Ok(own), Ok(there)) if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) => {}
                _ => continue,
            }
            let mut partial = Self {
                path,
                file,
                hasher: Sha256::new(),
                bytes: 0,
                floor,
                unchecked: CHECK_BYTES,
            };
            partial.read_back()?;
            return if partial.bytes > size {
                partial.restart()
            } else {
                Ok(partial)
            };
        }
    }

    fn read_back(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; BATCH_BYTES];
        loop {
            let count = self
                .file
                .read(&mut buffer)
                .map_err(|error| Error::io("reading", &self.path, error))?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
            self.bytes += count as u64;
        }
    }

    fn append(mut self, bytes: &[u8]) -> Result<Self, Error> {
        let mut room = Ok(());
        if self.unchecked >= CHECK_BYTES {
            self.unchecked = 0;
            room = self.floor.check();
        }
        if let Err(error) = room.and_then(|()| self.file.write_all(bytes)) {
            let error = Error::io("writing", &self.path, error);
            if matches!(error, Error::DiskFull { .. }) {
                // A full disk is worth more than a head start.
                self.remove();
            }
            return Err(error);
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.unchecked += bytes.len() as u64;
        Ok(self)
    }

    fn restart(mut self) -> Result<Self, Error> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|error| Error::io("emptying", &self.path, error))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(self)
    }

    fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Makes it durable under its final name.
    fn finish(self, target: PathBuf) -> Result<(), Error> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, &target))
            .map_err(|error| Error::io("keeping", &target, error))?;
        layout::flush_parent(&target)
    }
}
