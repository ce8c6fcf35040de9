//! Who an image runs as: `USER` looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files are read through the layers as overlayfs would show them, without a mount: the top layer wins,
//! whiteouts and opaque directories hide, and symbolic links are followed inside the image only. One walk serves
//! any file, so the launcher can ask for others ([`read_file`]).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::limits::{MAX_SYMLINKS, MAX_USER_FILE_BYTES};

/// Numbers to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups that `/etc/group` puts the user in, sorted. None when a group was named, as with Docker.
    pub supplementary_gids: Vec<u32>,
    /// For `HOME`; `/` when the image does not know the user.
    pub home: PathBuf,
    /// For `USER`, when the image knows it.
    pub name: Option<String>,
}

/// Looks up `user` (`name`, `uid`, `name:group`, `uid:gid` in any mixture; empty means root) in an image whose
/// layers are given top first.
///
/// A number need not be in the files; a name must. Blocks.
pub fn resolve_user(layers: &[PathBuf], user: &str) -> Result<ResolvedUser, Error> {
    let (wanted, group) = match user.split_once(':') {
        Some((wanted, group)) => (wanted, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let number = wanted.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let passwd = read_table(layers, "etc/passwd")?;
    // A name made of digits is a name first, as in every lookup of this kind.
    let account = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| account.name == wanted || number == Some(account.uid));
    let (uid, own_gid) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(unknown("user", wanted)),
    };
    let groups = read_table(layers, "etc/group")?;
    let groups = || groups.lines().filter_map(Group::parse);
    let name = account.as_ref().map(|account| account.name.to_owned());
    let home = account
        .as_ref()
        .map(|account| account.home)
        .filter(|home| home.starts_with('/'));
    let (gid, supplementary_gids) = match group {
        Some(group) => {
            let found = groups().find(|line| line.name == group).map(|line| line.gid);
            let number = group.parse::<u32>().ok().filter(|id| *id != u32::MAX);
            (
                found.or(number).ok_or_else(|| unknown("group", group))?,
                Vec::new(),
            )
        }
        None => {
            let member = |line: &Group<'_>| name.as_deref().is_some_and(|name| line.has(name));
            let mut gids: Vec<u32> = groups().filter(member).map(|line| line.gid).collect();
            gids.sort_unstable();
            gids.dedup();
            (own_gid, gids)
        }
    };
    Ok(ResolvedUser {
        uid,
        gid,
        supplementary_gids,
        home: PathBuf::from(home.unwrap_or("/")),
        name,
    })
}

/// Reads a file of an image whose layers are given top first, or `None` when it has none there (or no regular
/// one). Longer files are cut at `limit_bytes`. Blocks.
pub fn read_file(layers: &[PathBuf], path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
    let failed = |error: io::Error| Error::io("reading from an image", std::path::Path::new(path), error);
    let Some(file) = open(layers, path.as_bytes()).map_err(failed)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(limit_bytes)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(bytes))
}

fn read_table(layers: &[PathBuf], path: &str) -> Result<String, Error> {
    let bytes = read_file(layers, path, MAX_USER_FILE_BYTES)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unknown(kind: &'static str, name: &str) -> Error {
    const SHOWN_CHARS: usize = 64;
    Error::UnknownUser {
        kind,
        name: name.chars().take(SHOWN_CHARS).collect(),
    }
}

/// A line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (_, uid, gid) = (
            fields.next()?,
            fields.next()?.parse().ok()?,
            fields.next()?.parse().ok()?,
        );
        Some(Self {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    }
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (_, gid) = (fields.next()?, fields.next()?.parse().ok()?);
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }

    fn has(&self, member: &str) -> bool {
        self.members.split(',').any(|name| name.trim() == member)
    }
}

// ---- the layers as one tree ----

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::RDONLY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// Components walked in all, links included, so that links that name long paths cannot keep us busy.
const MAX_STEPS: usize = 4096;
/// Directories on the way to a file, and all that are open for it in all layers: a process has only so many
/// descriptors. Real images keep the files of users two or three directories deep.
const MAX_DEPTH: usize = 32;
const MAX_DIRECTORIES: usize = 1024;

/// A directory as overlayfs merges it: the same directory of several layers, top first.
type Merged = Vec<OwnedFd>;

/// What stands at a name.
enum Found {
    Nothing,
    Directory(Merged),
    Link(Vec<u8>),
    File(OwnedFd),
}

fn open(layers: &[PathBuf], path: &[u8]) -> io::Result<Option<OwnedFd>> {
    let root = || -> io::Result<Merged> {
        layers
            .iter()
            .map(|layer| Ok(rustix::fs::open(layer, DIRECTORY, Mode::empty())?))
            .collect()
    };
    // The directories on the way, for `..`; the first is the root.
    let mut way = vec![root()?];
    let mut left: Vec<Vec<u8>> = components(path);
    let mut links = 0;
    let mut steps = 0;
    let mut directories = layers.len();
    while let Some(name) = left.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return Ok(None);
        }
        if name == b".." {
            if way.len() > 1 {
                directories -= way.pop().map_or(0, |left| left.len());
            }
            continue;
        }
        let Some(directory) = way.last() else {
            return Ok(None);
        };
        match look(directory, &name)? {
            Found::Nothing => return Ok(None),
            Found::Directory(merged) => {
                directories += merged.len();
                way.push(merged);
                if way.len() > MAX_DEPTH || directories > MAX_DIRECTORIES {
                    return Ok(None);
                }
            }
            Found::File(file) => return Ok(left.is_empty().then_some(file)),
            Found::Link(target) => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                    directories = layers.len();
                }
                left.extend(components(&target));
            }
        }
    }
    Ok(None)
}

/// The components of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}

fn look(directories: &Merged, name: &[u8]) -> io::Result<Found> {
    let mut merged = Merged::new();
    for directory in directories {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
            Err(errno) => return Err(errno.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = rustix::fs::openat(directory, name, DIRECTORY, Mode::empty())?;
                let mut value = [0_u8; 1];
                let opaque = rustix::fs::fgetxattr(&child, OPAQUE_ATTRIBUTE, &mut value[..]) == Ok(1)
                    && value == *b"y";
                merged.push(child);
                if opaque {
                    break;
                }
            }
            // A whiteout, or something else that ends the merging below.
            _ if !merged.is_empty() => break,
            FileType::Symlink => {
                return Ok(Found::Link(
                    rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes(),
                ));
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                return Ok(Found::File(rustix::fs::openat(
                    directory,
                    name,
                    flags,
                    Mode::empty(),
                )?));
            }
            _ => return Ok(Found::Nothing),
        }
    }
    Ok(if merged.is_empty() {
        Found::Nothing
    } else {
        Found::Directory(merged)
    })
}
