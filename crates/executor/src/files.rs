//! Files and directories of the sandbox.
//!
//! A failure is an answer (HTTP 200) with an `error`, which clients tell apart by words that the kernel's own texts
//! have ("No such file", "exists", "not empty"). Paths are taken as the sandbox's programs would take them: whoever
//! may ask may run any program as the same user.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use crate::reply::{Reply, json, text};
use crate::request::BODY_BYTES_MAX;

/// Operations at once: each may hold a whole file in memory.
pub(crate) const THREADS_MAX: usize = 8;
/// Permissions of a new file, before the umask.
const FILE_MODE: u32 = 0o644;
/// Permissions of a new directory, before the umask.
const DIRECTORY_MODE: u32 = 0o755;
/// The largest file in one answer: as much as one request may carry.
const READ_BYTES_MAX: u64 = BODY_BYTES_MAX as u64;

/// What is asked about a path.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    path: String,
    /// For a file that is written.
    #[serde(default)]
    content: String,
    /// Whether `content` is, or shall be, base64.
    #[serde(default)]
    is_base64: bool,
}

/// What can be done with a path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Write,
    Read,
    Delete,
    MakeDirectory,
    DeleteDirectory,
    ListDirectory,
    Stat,
}

#[derive(Debug, Default, Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<String>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    stat: Option<Stat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Stat {
    path: String,
    /// Bytes.
    size: u64,
    /// Permission bits in octal, such as `0644`.
    mode: String,
    is_dir: bool,
    is_file: bool,
    is_symlink: bool,
    /// Seconds since 1970.
    modified: i64,
}

impl Operation {
    /// Does it, away from the thread that serves.
    pub(crate) async fn carry_out(self, wanted: Wanted) -> Reply {
        let done = tokio::task::spawn_blocking(move || match self.attempt(&wanted) {
            Ok(answer) => answer,
            Err(error) => Answer {
                success: self.says_success().then_some(false),
                error: Some(explain(&wanted.path, &error)),
                ..Answer::default()
            },
        });
        match done.await {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the operation broke off"),
        }
    }

    fn says_success(self) -> bool {
        !matches!(self, Self::Read | Self::ListDirectory | Self::Stat)
    }

    fn attempt(self, wanted: &Wanted) -> io::Result<Answer> {
        let path = Path::new(&wanted.path);
        if wanted.path.is_empty() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "`path` must not be empty",
            ));
        }
        let mut answer = Answer {
            success: self.says_success().then_some(true),
            ..Answer::default()
        };
        match self {
            Self::Write => write(path, wanted)?,
            Self::Read => {
                answer.content = Some(read(path, wanted.is_base64)?).filter(|text| !text.is_empty())
            }
            Self::Delete => fs::remove_file(path)?,
            Self::MakeDirectory => fs::DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(path)?,
            Self::DeleteDirectory => delete_directory(path)?,
            Self::ListDirectory => answer.entries = Some(list(path)?),
            Self::Stat => answer.stat = Some(stat(&wanted.path)?),
        }
        Ok(answer)
    }
}

fn write(path: &Path, wanted: &Wanted) -> io::Result<()> {
    let decoded;
    let bytes = if wanted.is_base64 {
        decoded = STANDARD.decode(&wanted.content).map_err(|error| {
            io::Error::new(
                ErrorKind::InvalidInput,
                format!("`content` is not base64: {error}"),
            )
        })?;
        &decoded
    } else {
        wanted.content.as_bytes()
    };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(bytes)
}

fn read(path: &Path, as_base64: bool) -> io::Result<String> {
    let file = fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    // Counted while reading: what a device or a growing file says of its size means nothing.
    file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > READ_BYTES_MAX {
        let most = READ_BYTES_MAX >> 20;
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("the file is larger than {most} MiB: read it in parts"),
        ));
    }
    if as_base64 {
        return Ok(STANDARD.encode(bytes));
    }
    String::from_utf8(bytes).map_err(|_| {
        io::Error::new(
            ErrorKind::InvalidData,
            "the file is not UTF-8 text: ask for it with `is_base64`, or have a command encode it",
        )
    })
}

/// As `rm -rf`: nothing there is no failure.
fn delete_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

fn stat(path: &str) -> io::Result<Stat> {
    let itself = fs::symlink_metadata(path)?;
    let found = fs::metadata(path).unwrap_or_else(|_| itself.clone());
    Ok(Stat {
        path: path.to_owned(),
        size: found.len(),
        mode: format!("{:04o}", found.mode() & 0o7777),
        is_dir: found.is_dir(),
        is_file: found.is_file(),
        is_symlink: itself.is_symlink(),
        modified: found.mtime(),
    })
}

/// With the kernel's own words, which clients look for; without the number that Rust adds.
fn explain(path: &str, error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    format!("{path}: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(operation: Operation, path: &Path, content: &str, is_base64: bool) -> Result<Answer, String> {
        let wanted = Wanted {
            path: path.to_str().unwrap().to_owned(),
            content: content.to_owned(),
            is_base64,
        };
        operation
            .attempt(&wanted)
            .map_err(|error| explain(&wanted.path, &error))
    }

    #[test]
    fn files_come_back_as_they_went() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        attempt(Operation::Write, &file, "héllo\n", false).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
        assert_eq!(read(&file, false).unwrap(), "héllo\n");
        attempt(Operation::Write, &file, "/wA=", true).unwrap();
        assert_eq!(fs::read(&file).unwrap(), [255, 0]);
        assert_eq!(read(&file, true).unwrap(), "/wA=");
        assert!(
            attempt(Operation::Read, &file, "", false)
                .unwrap_err()
                .contains("is_base64")
        );
        attempt(Operation::Write, &file, "", false).unwrap();
        assert_eq!(attempt(Operation::Read, &file, "", false).unwrap().content, None);
        assert!(
            attempt(Operation::Write, &file, "?", true)
                .unwrap_err()
                .contains("not base64")
        );
    }

    #[test]
    fn failures_say_the_words_that_clients_look_for() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing/file");
        for operation in [
            Operation::Write,
            Operation::Read,
            Operation::Delete,
            Operation::ListDirectory,
        ] {
            let error = attempt(operation, &missing, "", false).unwrap_err();
            assert!(error.ends_with("No such file or directory"), "{error}");
        }
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = attempt(Operation::MakeDirectory, &file, "", false).unwrap_err();
        assert!(error.contains("exists"), "{error}");
        assert!(
            attempt(Operation::Read, dir.path(), "", false)
                .unwrap_err()
                .contains("directory")
        );
        assert!(
            attempt(Operation::Read, Path::new(""), "", false)
                .unwrap_err()
                .contains("path")
        );
    }

    #[test]
    fn directories_are_made_with_their_parents_and_go_with_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        attempt(Operation::MakeDirectory, &deep, "", false).unwrap();
        attempt(Operation::MakeDirectory, &deep, "", false).unwrap();
        fs::write(deep.join("z"), "").unwrap();
        fs::write(deep.join("y"), "").unwrap();
        assert_eq!(list(&deep).unwrap(), ["y", "z"]);
        assert!(stat(deep.to_str().unwrap()).unwrap().is_dir);
        let top = dir.path().join("a");
        attempt(Operation::DeleteDirectory, &top, "", false).unwrap();
        attempt(Operation::DeleteDirectory, &top, "", false).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn an_endless_file_ends() {
        let error = attempt(Operation::Read, Path::new("/dev/zero"), "", false).unwrap_err();
        assert!(error.contains("larger than"), "{error}");
    }
}
