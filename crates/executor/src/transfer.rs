//! `tram-executor file read|write|list|pack|unpack`: files between the sandbox and the standard streams of a command.
//!
//! Started by `tram` through the platform's own way to run a command inside, so it needs no secret, no port and nothing
//! of the image, and a file of any size passes through a small buffer. Beyond the contract of the HTTP protocol, whose
//! answers hold a whole file. Paths are taken as the sandbox's programs would take them: whoever may start this may run
//! any program as the same user.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The argument that asks for this instead of the executor.
pub(crate) const WORD: &str = "file";
/// Permissions of a new file that nobody chose, before the umask.
const FILE_MODE: u32 = 0o644;
/// Permissions that can be chosen: all but the kinds of file.
const MODE_MASK: u32 = 0o7777;
/// Most entries of a directory in one list: a list of more is of no use to a reader, and its memory is the sandbox's.
const ENTRIES_MAX: usize = 10_000;

/// Buffer between a stream of files and the standard streams: the size of a pipe.
const STREAM_BYTES: usize = 64 * 1024;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// A part of the file to standard output.
    Read {
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Most bytes.
        length: u64,
    },
    /// Standard input to the file, whose directories are made.
    Write {
        path: PathBuf,
        /// Permission bits; none leaves those of a file that exists.
        mode: Option<u32>,
    },
    /// The entries of the directory as JSON.
    List(PathBuf),
    /// A file or a whole directory to standard output, as a stream of `tram-transfer`.
    Pack(PathBuf),
    /// Such a stream from standard input to the path, or below it when it is a directory.
    Unpack(PathBuf),
}

#[derive(Debug, Serialize)]
struct Listing {
    /// By name.
    entries: Vec<Entry>,
    /// Whether there are more than [`ENTRIES_MAX`].
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// `file`, `directory`, `link` or `other`.
    kind: &'static str,
    /// Bytes.
    size: u64,
    /// Permission bits in octal, such as `0644`.
    mode: String,
}

/// Carries out the arguments after [`WORD`].
///
/// # Errors
///
/// A text for whoever asked, with the path.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let wanted = Wanted::parse(&arguments.collect::<Vec<_>>())?;
    let (path, outcome) = match &wanted {
        Wanted::Read { path, offset, length } => {
            (path, read(path, *offset, *length, &mut io::stdout().lock()))
        }
        Wanted::Write { path, mode } => (path, write(path, *mode, &mut io::stdin().lock())),
        Wanted::List(path) => (path, list(path, &mut io::stdout().lock())),
        // Their errors have paths of their own; what was left out is in the stream, or told by whoever reads it.
        Wanted::Pack(path) => {
            let mut output = io::BufWriter::with_capacity(STREAM_BYTES, io::stdout().lock());
            return tram_transfer::pack(path, &mut output)
                .map(|_| ())
                .map_err(|error| error.to_string());
        }
        Wanted::Unpack(path) => {
            let mut input = io::BufReader::with_capacity(STREAM_BYTES, io::stdin().lock());
            let summary = tram_transfer::unpack(&mut input, path).map_err(|error| error.to_string())?;
            return say_summary(&summary, &mut io::stdout().lock())
                .map_err(|error| format!("cannot answer: {error}"));
        }
    };
    outcome.map_err(|error| format!("{}: {error}", path.display()))
}

impl Wanted {
    fn parse(arguments: &[OsString]) -> Result<Self, String> {
        const USE: &str = "use: file read PATH [OFFSET [LENGTH]] | file write PATH [MODE] | file list PATH | \
                           file pack PATH | file unpack PATH";
        let [what, path, rest @ ..] = arguments else {
            return Err(USE.to_owned());
        };
        let path = PathBuf::from(path);
        let number = |what: &str, text: &OsString, radix: u32| {
            let text = text.to_str().unwrap_or_default();
            u64::from_str_radix(text, radix).map_err(|_| format!("{what} is no number: {text}"))
        };
        match (what.to_str(), rest) {
            (Some("read"), rest) if rest.len() <= 2 => Ok(Self::Read {
                path,
                offset: rest
                    .first()
                    .map_or(Ok(0), |text| number("the offset", text, 10))?,
                length: rest
                    .get(1)
                    .map_or(Ok(u64::MAX), |text| number("the length", text, 10))?,
            }),
            (Some("write"), []) => Ok(Self::Write { path, mode: None }),
            (Some("write"), [mode]) => {
                let bits = number("the mode", mode, 8)?;
                let bits = u32::try_from(bits).ok().filter(|bits| bits & !MODE_MASK == 0);
                let mode = Some(bits.ok_or("the mode must be at most 7777")?);
                Ok(Self::Write { path, mode })
            }
            (Some("list"), []) => Ok(Self::List(path)),
            (Some("pack"), []) => Ok(Self::Pack(path)),
            (Some("unpack"), []) => Ok(Self::Unpack(path)),
            _ => Err(USE.to_owned()),
        }
    }
}

/// What became of a copy, for whoever sent it.
fn say_summary(summary: &tram_transfer::Summary, output: &mut impl Write) -> io::Result<()> {
    let told = serde_json::json!({
        "files": summary.files, "bytes": summary.bytes, "left_out": summary.left_out, "named": summary.named,
    });
    writeln!(output, "{told}")?;
    output.flush()
}

fn read(path: &Path, offset: u64, length: u64, output: &mut impl Write) -> io::Result<()> {
    let mut file = File::open(path)?;
    if offset > 0 {
        file.seek(SeekFrom::Start(offset))?;
    }
    io::copy(&mut file.take(length), output)?;
    output.flush()
}

fn write(path: &Path, mode: Option<u32>, input: &mut impl Read) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode.unwrap_or(FILE_MODE))
        .open(path)?;
    io::copy(input, &mut file)?;
    if let Some(mode) = mode {
        // By the open file, not by its path, which may lead elsewhere by now.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn list(path: &Path, output: &mut impl Write) -> io::Result<()> {
    let mut entries = Vec::new();
    let mut truncated = false;
    for found in fs::read_dir(path)? {
        let found = found?;
        if entries.len() == ENTRIES_MAX {
            truncated = true;
            break;
        }
        // Of the entry itself: where a link leads is not in this directory.
        let Ok(about) = found.metadata() else {
            // It has gone since the directory was read.
            continue;
        };
        entries.push(Entry {
            name: found.file_name().to_string_lossy().into_owned(),
            kind: match about.file_type() {
                kind if kind.is_dir() => "directory",
                kind if kind.is_file() => "file",
                kind if kind.is_symlink() => "link",
                _ => "other",
            },
            size: about.len(),
            mode: format!("{:04o}", about.mode() & MODE_MASK),
        });
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    serde_json::to_writer(&mut *output, &Listing { entries, truncated })?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Wanted, String> {
        Wanted::parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read_and_wrong_ones_refused() {
        let read = |offset, length| Wanted::Read {
            path: "/f".into(),
            offset,
            length,
        };
        assert_eq!(parse(&["read", "/f"]), Ok(read(0, u64::MAX)));
        assert_eq!(parse(&["read", "/f", "7", "9"]), Ok(read(7, 9)));
        let mode = Some(0o4755);
        assert_eq!(
            parse(&["write", "/f", "4755"]),
            Ok(Wanted::Write {
                path: "/f".into(),
                mode
            })
        );
        for (wrong, word) in [
            (&["read", "/f", "-1"][..], "-1"),
            (&["write", "/f", "9"], "9"),
            (&["write", "/f", "10000"], "7777"),
            (&["list", "/f", "x"], "use:"),
            (&["read"], "use:"),
            (&["erase", "/f"], "use:"),
        ] {
            assert!(parse(wrong).unwrap_err().contains(word), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/file");
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        write(&path, Some(0o640), &mut bytes.as_slice()).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & MODE_MASK, 0o640);
        let mut all = Vec::new();
        read(&path, 0, u64::MAX, &mut all).unwrap();
        assert_eq!(all, bytes);
        let mut part = Vec::new();
        read(&path, 99_998, 10, &mut part).unwrap();
        assert_eq!(part, &bytes[99_998..]);
        // A shorter file replaces it, and its permissions stay.
        write(&path, None, &mut &b"x"[..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(path.metadata().unwrap().mode() & MODE_MASK, 0o640);
    }

    #[test]
    fn a_list_tells_kinds_and_does_not_follow_links() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        fs::write(directory.path().join("file"), "12345").unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        let mut output = Vec::new();
        list(directory.path(), &mut output).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&output).unwrap();
        let seen: Vec<(&str, &str)> = value["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["name"].as_str().unwrap(), entry["kind"].as_str().unwrap()))
            .collect();
        assert_eq!(seen, [("file", "file"), ("link", "link"), ("sub", "directory")]);
        assert_eq!(
            (&value["entries"][0]["size"], &value["truncated"]),
            (&5.into(), &false.into())
        );
    }
}
