//! Which ids of the machine a restored user namespace has: those of the copy, not of the first one.
//!
//! The file is CRIU's (`images/userns.proto` of its source): two words that name the kind, the length of a message, and the
//! message. The ids that processes have are written down as they are inside, so nothing else knows the block outside.

use std::fs;
use std::io;
use std::path::Path;

use prost::Message;

use crate::protocol::IdRange;
use crate::state::ignore_missing;

/// The two words before the message.
const HEAD_BYTES: usize = 8;
/// A head and two lines of a map.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Clone, PartialEq, Message)]
struct Extent {
    #[prost(uint32, required, tag = "1")]
    first: u32,
    #[prost(uint32, required, tag = "2")]
    lower_first: u32,
    #[prost(uint32, required, tag = "3")]
    count: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Maps {
    #[prost(message, repeated, tag = "1")]
    users: Vec<Extent>,
    #[prost(message, repeated, tag = "2")]
    groups: Vec<Extent>,
}

/// Gives the user namespace in an image this block of ids. The image keeps what it says of everything else; the file is
/// made anew, since the old one may be a link that others have too.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] when the image has a user namespace and the copy is to have none, or the other way
/// around: the ids of its files would be wrong.
pub(crate) fn give(image: &Path, range: Option<IdRange>) -> io::Result<()> {
    let mut found = None;
    for entry in fs::read_dir(image)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("userns-") {
            found = Some(entry.path());
        }
    }
    let (path, range) = match (found, range) {
        (None, None) => return Ok(()),
        (Some(path), Some(range)) => (path, range),
        _ => {
            let text =
                "the first one and its copy must both have ids of their own, or neither (`user_namespaces`)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    if fs::metadata(&path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the map of ids is too long",
        ));
    }
    let old = fs::read(&path)?;
    let head = old
        .get(..HEAD_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the map of ids is cut off"))?;
    let extent = Extent {
        first: 0,
        lower_first: range.first,
        count: IdRange::LENGTH,
    };
    let message = Maps {
        users: vec![extent.clone()],
        groups: vec![extent],
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mode = fs::metadata(&path)?.permissions();
    ignore_missing(fs::remove_file(&path))?;
    fs::write(&path, [head, &length.to_le_bytes(), &message].concat())?;
    fs::set_permissions(&path, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_gets_its_own_block_and_the_first_one_keeps_its() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, lent) = (dir.path().join("kept"), dir.path().join("lent"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&lent).unwrap();
        let old = [b"headhead".as_slice(), &[2, 0, 0, 0], &[1, 2]].concat();
        fs::write(kept.join("userns-9.img"), &old).unwrap();
        fs::hard_link(kept.join("userns-9.img"), lent.join("userns-9.img")).unwrap();
        let range = IdRange::numbered(5);
        give(&lent, Some(range)).unwrap();
        assert_eq!(fs::read(kept.join("userns-9.img")).unwrap(), old);
        let new = fs::read(lent.join("userns-9.img")).unwrap();
        assert_eq!(&new[..8], b"headhead");
        let maps = Maps::decode(&new[12..]).unwrap();
        assert_eq!(maps.users, maps.groups);
        assert_eq!(maps.users[0].lower_first, range.first);
        give(&lent, None).unwrap_err();
        fs::remove_file(lent.join("userns-9.img")).unwrap();
        give(&lent, Some(range)).unwrap_err();
        give(&lent, None).unwrap();
    }
}
