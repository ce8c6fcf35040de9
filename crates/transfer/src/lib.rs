//! Files and directories as one stream, written by [`pack`] and read by [`unpack`].
//!
//! Used by `tram sandbox cp` on one side and the executor inside the sandbox on the other. **Owns** the format and the
//! safety of unpacking: the stream may come from a sandbox whose code nobody has read. **Does not own** how the bytes
//! travel.
//!
//! The one design choice to know: the format is our own and not tar's, since both ends are ours. It cannot say what must
//! not be made (devices, hard links, owners, set-user-id bits), every length in it has a limit, and a file whose size
//! changes while it is read does no harm.
//!
//! ```text
//! stream    = MAGIC entry* 'e'
//! entry     = 'd' mode path                     a directory
//!           | 'f' mode path chunk* length(0)    a file
//!           | 'l' path target                   a symbolic link
//!           | 'x' path reason                   something that was left out
//!           | 'a' reason                        the sender gives up; also in place of a chunk (length u32::MAX)
//! chunk     = length(u32, at most CHUNK_BYTES) bytes
//! mode      = u32; path, target, reason = length(u16, at most TEXT_BYTES_MAX) bytes
//! ```
//! Numbers are big-endian. The first component of every path is the name of what is copied.

mod format;
mod pack;
mod unpack;

pub use pack::pack;
pub use unpack::unpack;

/// How many of the things that were left out are named; the others are counted.
const NAMED_MAX: usize = 20;

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// How many things were left out.
    pub left_out: u64,
    /// Some of those, each with the reason.
    pub named: Vec<String>,
}

impl Summary {
    fn leave_out(&mut self, path: &std::path::Path, reason: &str) {
        self.left_out += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(format!("{}: {reason}", path.display()));
        }
    }
}
