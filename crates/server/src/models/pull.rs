//! A model's file from the web (`registry` has it from elsewhere): fetched once, gone on with where it was cut off, and looked at before it is whole.
//!
//! The download lies in `models/downloads`, under a name made of its URL, with the server's tag of it beside. A tag that
//! changed means another file, and the download begins anew. A large file comes in [`pieces`] side by side. As soon as the header is there, what the file says of itself
//! decides whether the rest is worth fetching.

mod pieces;

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_RANGE, ETAG, IF_RANGE, RANGE},
    redirect::Policy,
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tram_cli::Printer;
use tram_model::{Gguf, gguf, memory, source::is_of_this_machine};

use self::pieces::PIECE_BYTES;
use crate::{images::mib, paths::Paths};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long is asked again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a transfer that broke without having got any further is tried again.
const ATTEMPTS: u32 = 5;
/// Between two of them: a line that was cut off is back after seconds, or after hours.
const PAUSE: Duration = Duration::from_secs(2);
/// The hub leads to a store of files, and that to one nearby.
const REDIRECTS_MAX: usize = 5;
/// Room on the disk that is left for others.
const SPARE_BYTES: u64 = 1024 * 1024 * 1024;
/// How often progress is said.
pub(super) const NOTE_INTERVAL: Duration = Duration::from_secs(2);
/// The header is looked for each time so much more has come.
pub(super) const LOOK_EVERY_BYTES: u64 = 4 * 1024 * 1024;

/// A file that is being fetched.
struct Download<'p> {
    client: reqwest::Client,
    url: &'p str,
    token: Option<&'p str>,
    path: PathBuf,
    tag_path: PathBuf,
    printer: &'p Printer,
    noted_at: Instant,
    /// What the file says of itself was looked at.
    checked: bool,
    /// The header is looked for again when so much is there.
    look_at: u64,
    /// Pieces came that did not fit together: the servers behind one name may tag one file differently.
    in_a_row: bool,
}

/// The file at `url`, whole. `token` is shown to its host, and to none that it leads to.
///
/// # Errors
/// With what is wrong, for the user.
pub(super) async fn fetch(
    paths: &Paths,
    url: &str,
    token: Option<&str>,
    printer: &Printer,
) -> anyhow::Result<PathBuf> {
    if token.is_some() && !url.starts_with("https://") && !is_of_this_machine(url) {
        bail!("a token is not shown to {url}, which is asked without TLS");
    }
    let directory = directory(paths)?;
    let path = directory.join(hex::encode(Sha256::digest(url)));
    let mut download = Download {
        client: client(url)?,
        url,
        token,
        tag_path: path.with_extension("tag"),
        path,
        printer,
        noted_at: Instant::now(),
        checked: false,
        look_at: 0,
        in_a_row: false,
    };
    let mut failures = 0;
    loop {
        let before = download.have();
        let error = match download.attempt().await {
            Ok(()) => return Ok(download.path),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(error)) => error,
        };
        failures = if download.have() > before { 1 } else { failures + 1 };
        if failures >= ATTEMPTS {
            return Err(error.context(format!(
                "cannot fetch {url}; what has come is kept, and the same command goes on from there"
            )));
        }
        printer.note(format_args!("the transfer broke ({error:#}), going on"));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where downloads lie.
pub(super) fn directory(paths: &Paths) -> anyhow::Result<PathBuf> {
    let directory = paths.models().join("downloads");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}: are you root?", directory.display()))?;
    Ok(directory)
}

/// Forgets a download that was taken in, or that is not wanted.
pub(super) fn forget(path: &Path) {
    // What stays is found by the next pull of the same file.
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(path.with_extension("tag"));
}

enum Failure {
    /// Trying again can help.
    Passing(anyhow::Error),
    /// It cannot.
    Lasting(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Lasting(error.into())
    }
}

/// With redirects from TLS to TLS alone; a test's server on this machine may do without.
fn client(url: &str) -> anyhow::Result<reqwest::Client> {
    let may_be_plain = is_of_this_machine(url);
    let policy = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if attempt.url().scheme() != "https" && !may_be_plain {
            attempt.error("a redirect leads away from TLS")
        } else {
            attempt.follow()
        }
    });
    Ok(reqwest::Client::builder()
        .user_agent(concat!("tramontane/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(policy)
        .build()?)
}

impl Download<'_> {
    /// Bytes that are there.
    fn have(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    async fn attempt(&mut self) -> Result<(), Failure> {
        let tag = std::fs::read_to_string(&self.tag_path).unwrap_or_default();
        // Without a tag nobody can say that the rest belongs to the same file.
        let have = if tag.is_empty() { 0 } else { self.have() };
        let mut request = self.client.get(self.url);
        if let Some(token) = self.token {
            // The client takes it off where a redirect leads to another host.
            request = request.bearer_auth(token);
        }
        if have > 0 {
            request = request
                .header(RANGE, format!("bytes={have}-"))
                .header(IF_RANGE, &tag);
        }
        let response = request
            .send()
            .await
            .map_err(|error| Failure::Passing(error.into()))?;
        match response.status() {
            StatusCode::OK => self.take(response, 0).await,
            StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(have) => {
                self.take(response, have).await
            }
            // All of it is there already, or the tag is of a file that was longer.
            StatusCode::RANGE_NOT_SATISFIABLE if whole_of(&response) == Some(have) => Ok(()),
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                forget(&self.path);
                Err(Failure::Passing(anyhow::anyhow!(
                    "the file changed on the server"
                )))
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::Passing(anyhow::anyhow!("the server answered {status}")))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Lasting(anyhow::anyhow!(
                "{} is not open to everybody: of the hub, set HF_TOKEN to a token that may read it, or name a secret that has one (`--secret`); else download it by hand, and use `tram models import`",
                self.url
            ))),
            StatusCode::NOT_FOUND => Err(Failure::Lasting(anyhow::anyhow!("there is no {}", self.url))),
            status => Err(Failure::Lasting(anyhow::anyhow!(
                "{} answered {status}",
                self.url
            ))),
        }
    }

    /// Writes what comes behind the first `from` bytes.
    async fn take(&mut self, mut response: Response, from: u64) -> Result<(), Failure> {
        let rest = response.content_length();
        let total = rest.map(|rest| rest.saturating_add(from));
        if let Some(rest) = rest {
            self.check_room(rest, total)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&self.path)?;
        file.set_len(from)?;
        file.seek(SeekFrom::Start(from))?;
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        // A weak tag is no promise that bytes are the same.
        let tag = tag.filter(|tag| !tag.starts_with("W/")).unwrap_or_default();
        std::fs::write(&self.tag_path, tag)?;
        // Where pieces can come side by side, this answer is for the first alone; what is short comes in one.
        let source =
            pieces::Source::of(&self.client, self.url, self.token, &response, tag).filter(|_| !self.in_a_row);
        let source = source.zip(total.filter(|total| *total > from + 2 * PIECE_BYTES));
        let first_ends = match source {
            Some(_) => from + PIECE_BYTES,
            None => u64::MAX,
        };
        let mut have = from;
        while have < first_ends
            && let Some(chunk) = response
                .chunk()
                .await
                .map_err(|error| Failure::Passing(error.into()))?
        {
            file.write_all(&chunk)?;
            have = have.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
            if total.is_none() {
                self.check_room(0, Some(have))?;
            }
            self.look(have, total)?;
            self.note(have, total);
        }
        drop(response);
        if let Some((source, total)) = source {
            let mut pieces = pin!(source.pieces(have..total));
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| self.passing(error))?;
                file.write_all(&piece)?;
                have = have.saturating_add(u64::try_from(piece.len()).unwrap_or(0));
                self.look(have, Some(total))?;
                self.note(have, Some(total));
            }
        }
        if total.is_some_and(|total| have < total) {
            return Err(Failure::Passing(anyhow::anyhow!("the transfer ended early")));
        }
        file.sync_all()?;
        Ok(())
    }

    /// Another try can help; from the beginning where it is another file now. Pieces that did not fit are not tried again.
    fn passing(&mut self, error: pieces::Error) -> Failure {
        self.in_a_row |= matches!(error, pieces::Error::Changed | pieces::Error::Other);
        if matches!(error, pieces::Error::Changed) {
            forget(&self.path);
        }
        Failure::Passing(error.into())
    }

    fn check_room(&self, missing: u64, size: Option<u64>) -> anyhow::Result<()> {
        check_room(self.path.parent().unwrap_or(&self.path), self.url, missing, size)
    }

    /// Reads the header when it has come, and refuses what can never be served here.
    fn look(&mut self, have: u64, total: Option<u64>) -> anyhow::Result<()> {
        if self.checked || have < self.look_at {
            return Ok(());
        }
        self.look_at = have.saturating_add(LOOK_EVERY_BYTES);
        self.checked = looked_at(&self.path, have, total).inspect_err(|_| forget(&self.path))?;
        Ok(())
    }

    fn note(&mut self, have: u64, total: Option<u64>) {
        if self.noted_at.elapsed() < NOTE_INTERVAL {
            return;
        }
        self.noted_at = Instant::now();
        match total {
            Some(total) => self
                .printer
                .note(format_args!("{:.0} of {:.0} MiB", mib(have), mib(total))),
            None => self.printer.note(format_args!("{:.0} MiB", mib(have))),
        }
    }
}

/// Whether the disk has room for the bytes of `what` that are missing, and for all of it once more (`size`, as far as it is
/// known): the store of models makes a copy of its own while the download is there.
pub(super) fn check_room(
    directory: &Path,
    what: &str,
    missing: u64,
    size: Option<u64>,
) -> anyhow::Result<()> {
    let bytes = missing.saturating_add(size.unwrap_or(0));
    let room = nix::sys::statvfs::statvfs(directory)?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    if free < bytes.saturating_add(SPARE_BYTES) {
        bail!(
            "{what} needs {:.0} MiB of the disk, which has {:.0} MiB free and keeps {:.0} MiB for others",
            mib(bytes),
            mib(free),
            mib(SPARE_BYTES)
        );
    }
    Ok(())
}

/// Reads the header of a file of which so much is there; false when not all of that has come.
///
/// # Errors
/// When it can never be served here.
pub(super) fn looked_at(path: &Path, have: u64, total: Option<u64>) -> anyhow::Result<bool> {
    let gguf = match Gguf::read(File::open(path)?, total.unwrap_or(u64::MAX)) {
        Ok(gguf) => gguf,
        // Not all of it has come.
        Err(gguf::Error::Truncated(_)) => return Ok(false),
        Err(gguf::Error::Magic) if have < 4 => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let Some(total) = total else { return Ok(true) };
    let (needed, memory) = (memory::needed_by(&gguf, total, 0), crate::host::memory_bytes());
    if needed > memory {
        bail!(
            "the model needs {:.1} GiB of memory, and this machine has {:.1}: choose a smaller one, or one of fewer bits",
            mib(needed) / 1024.0,
            mib(memory) / 1024.0
        );
    }
    Ok(true)
}

/// Where a part starts, by its `Content-Range: bytes 10-19/20`.
fn starts_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// How long the whole is, by a `Content-Range: bytes */20`.
fn whole_of(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes */")?.parse().ok()
}
