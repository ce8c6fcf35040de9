//! What an image says of an address space: which pages are in it, and which of them come as they are touched.
//!
//! The files are CRIU's (`images/pagemap.proto`, `images/mm.proto`, `images/vma.proto` of its source): two words that name
//! the kind, then messages, each with its length before it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use prost::Message;

use super::PAGE_BYTES;
use super::missing::{Missing, Piece};

/// The first word of every image, and the second of the two that are read here.
const COMMON: u32 = 0x5456_4319;
const PAGEMAP: u32 = 0x5608_4025;
const MM: u32 = 0x5749_2820;
/// What says where things are is small: a mapping takes some tens of bytes, and the kernel allows 65,530 of them.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A page is in the file.
const PRESENT: u32 = 1 << 2;

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "1")]
    vaddr: u64,
    /// Up to CRIU 4.0.
    #[prost(uint32, optional, tag = "2")]
    compat_nr_pages: Option<u32>,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Mm {
    #[prost(message, repeated, tag = "14")]
    vmas: Vec<Vma>,
}

#[derive(Clone, PartialEq, Message)]
struct Vma {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
    #[prost(uint32, tag = "6")]
    flags: u32,
    #[prost(uint32, tag = "7")]
    status: u32,
}

impl Vma {
    /// Whether its pages come as they are touched: CRIU's rule (`vma_entry_can_be_lazy`).
    fn comes_later(&self) -> bool {
        const VSYSCALL: u32 = 1 << 2;
        const VDSO: u32 = 1 << 3;
        const VVAR: u32 = 1 << 12;
        let has = |flag: i32| self.flags & flag.cast_unsigned() != 0;
        has(libc::MAP_ANONYMOUS)
            && has(libc::MAP_PRIVATE)
            && !has(libc::MAP_LOCKED)
            && !has(libc::MAP_HUGETLB)
            && self.status & (VSYSCALL | VDSO | VVAR) == 0
    }
}

/// What a process lacks after its restore, and the file that has it.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) missing: Missing,
    pub(super) pages: File,
}

impl Space {
    /// Reads what an image says of a process, by its number inside.
    ///
    /// # Errors
    /// When the files are not there, or are not what CRIU writes.
    pub(super) fn read(directory: &Path, pid: i32) -> io::Result<Self> {
        let mm = messages(&directory.join(format!("mm-{pid}.img")), MM)?;
        let mm = Mm::decode(mm.first().map_or(&[][..], Vec::as_slice)).map_err(broken)?;
        let entries = messages(&directory.join(format!("pagemap-{pid}.img")), PAGEMAP)?;
        let (head, entries) = entries.split_first().ok_or_else(|| broken("no head"))?;
        let head = Head::decode(head.as_slice()).map_err(broken)?;
        let pages = File::open(directory.join(format!("pages-{}.img", head.pages_id)))?;

        let mut there = Missing::default();
        let mut at = 0;
        for entry in entries {
            let entry = Entry::decode(entry.as_slice()).map_err(broken)?;
            if entry.in_parent == Some(true) || entry.flags.is_some_and(|flags| flags & PRESENT == 0) {
                continue;
            }
            let count = entry
                .nr_pages
                .or(entry.compat_nr_pages.map(u64::from))
                .unwrap_or(0);
            let bytes = count.checked_mul(PAGE_BYTES);
            let end = bytes.and_then(|bytes| entry.vaddr.checked_add(bytes));
            let (Some(bytes), Some(_)) = (bytes, end) else {
                return Err(broken("an entry beyond all memory"));
            };
            there.put(Piece {
                start: entry.vaddr,
                bytes,
                at,
            });
            at = at.checked_add(bytes).ok_or_else(|| broken("too many pages"))?;
        }
        if at > pages.metadata()?.len() {
            return Err(broken("pages are missing"));
        }
        let mut missing = Missing::default();
        for vma in mm.vmas.iter().filter(|vma| vma.comes_later()) {
            for piece in there.take_all(&(vma.start..vma.end)) {
                missing.put(piece);
            }
        }
        Ok(Self { missing, pages })
    }
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image is broken: {why}"))
}

/// The messages of a file.
fn messages(path: &Path, kind: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    if (word(&mut rest)?, word(&mut rest)?) != (COMMON, kind) {
        return Err(broken(format_args!("{} is of another kind", path.display())));
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::try_from(word(&mut rest)?).map_err(broken)?;
        let message = rest
            .split_at_checked(length)
            .ok_or_else(|| broken("it ends early"))?;
        found.push(message.0.to_vec());
        rest = message.1;
    }
    Ok(found)
}

fn word(bytes: &mut &[u8]) -> io::Result<u32> {
    let (word, rest) = bytes.split_first_chunk().ok_or_else(|| broken("it ends early"))?;
    *bytes = rest;
    Ok(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(path: &Path, kind: u32, messages: &[Vec<u8>]) {
        let mut bytes = [COMMON.to_le_bytes(), kind.to_le_bytes()].concat();
        for message in messages {
            bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            bytes.extend(message);
        }
        fs::write(path, bytes).unwrap();
    }

    fn entry(vaddr: u64, count: u64, flags: u32) -> Vec<u8> {
        let entry = Entry {
            vaddr,
            compat_nr_pages: None,
            in_parent: None,
            flags: Some(flags),
            nr_pages: Some(count),
        };
        entry.encode_to_vec()
    }

    fn image(entries: &[Vec<u8>], pages: u64) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let private = libc::MAP_PRIVATE.cast_unsigned();
        let anonymous = private | libc::MAP_ANONYMOUS.cast_unsigned();
        let vma = |start, end, flags| Vma {
            start,
            end,
            flags,
            status: 1,
        };
        let mm = Mm {
            vmas: vec![vma(0x1000, 0x5000, anonymous), vma(0x5000, 0x9000, private)],
        };
        write(&directory.path().join("mm-7.img"), MM, &[mm.encode_to_vec()]);
        let head = Head { pages_id: 3 }.encode_to_vec();
        write(
            &directory.path().join("pagemap-7.img"),
            PAGEMAP,
            &[&[head], entries].concat(),
        );
        let file = File::create(directory.path().join("pages-3.img")).unwrap();
        file.set_len(pages * PAGE_BYTES).unwrap();
        directory
    }

    #[test]
    fn only_private_memory_comes_later_and_offsets_count_every_page() {
        // Pages 2 and 3 of the first mapping; 4 of it and 5 of the second, which CRIU reads itself; one not in the file.
        let directory = image(
            &[
                entry(0x2000, 2, PRESENT),
                entry(0x4000, 2, PRESENT),
                entry(0x8000, 1, 0),
            ],
            4,
        );
        let mut space = Space::read(directory.path(), 7).unwrap();
        let everything = 0..u64::MAX;
        let piece = |start, bytes, at| Piece { start, bytes, at };
        assert_eq!(
            space.missing.take(0x3000, &everything),
            Some(piece(0x2000, 0x2000, 0))
        );
        assert_eq!(
            space.missing.take(0x4000, &everything),
            Some(piece(0x4000, 0x1000, 0x2000))
        );
        assert!(space.missing.is_empty());
    }

    #[test]
    fn a_damaged_image_is_refused() {
        assert!(Space::read(image(&[entry(0x2000, 2, PRESENT)], 1).path(), 7).is_err());
        assert!(Space::read(image(&[entry(u64::MAX, 2, PRESENT)], 4).path(), 7).is_err());
        assert!(Space::read(image(&[entry(0x2000, u64::MAX / 2, PRESENT)], 4).path(), 7).is_err());
        assert!(Space::read(image(&[vec![0xff; 9]], 4).path(), 7).is_err());
        let whole = image(&[entry(0x2000, 2, PRESENT)], 2);
        let path = whole.path().join("pagemap-7.img");
        let bytes = fs::read(&path).unwrap();
        for length in [0, 3, 9, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(Space::read(whole.path(), 7).is_err(), "{length} bytes");
        }
        assert!(Space::read(whole.path(), 8).is_err());
    }
}
