//! The name by which programs ask for a shared library, which is written in the library.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use goblin::elf::dynamic::{DT_SONAME, DT_STRTAB, Dynamic};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf::{Elf, Header};

/// Longest name of a library: that of a file.
const NAME_MAX: u64 = 255;
/// Program headers and dynamic entries of one library: real ones have about ten and forty.
const TABLE_BYTES_MAX: u64 = 64 << 10;

/// The name in a library, such as `libcuda.so.1`; `None`: it is none that can be read, or has no plain name. Reads the few
/// bytes that say so: a driver's libraries are hundreds of megabytes.
pub(super) fn of(path: &Path) -> Option<String> {
    let mut file = File::open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|found| found.is_file()))?;
    let header: Header = Elf::parse_header(&read(&mut file, 0, 64)?).ok()?;
    let is_64 = header.e_ident.get(4) == Some(&2);
    let context = goblin::container::Ctx::new(
        if is_64 {
            goblin::container::Container::Big
        } else {
            goblin::container::Container::Little
        },
        header.endianness().ok()?,
    );
    let count = usize::from(header.e_phnum);
    let length = u64::from(header.e_phnum) * u64::from(header.e_phentsize);
    let table = read(&mut file, header.e_phoff, length)?;
    let segments = ProgramHeader::parse(&table, 0, count, context).ok()?;
    let dynamic = segments
        .iter()
        .find(|segment| segment.p_type == goblin::elf::program_header::PT_DYNAMIC)?;
    let table = read(&mut file, dynamic.p_offset, dynamic.p_filesz)?;
    let mut at_start = dynamic.clone();
    at_start.p_offset = 0;
    let entries = Dynamic::parse(&table, &[at_start], context).ok()??;
    let value = |tag: u64| {
        let found = entries.dyns.iter().find(|entry| entry.d_tag == tag);
        found.map(|entry| entry.d_val)
    };
    let (name, strings) = (value(DT_SONAME)?, value(DT_STRTAB)?);
    let segment = segments.iter().find(|segment| {
        segment.p_type == PT_LOAD
            && strings >= segment.p_vaddr
            && strings - segment.p_vaddr < segment.p_filesz
    })?;
    let at = (strings - segment.p_vaddr)
        .checked_add(segment.p_offset)?
        .checked_add(name)?;
    file.seek(SeekFrom::Start(at)).ok()?;
    let mut bytes = Vec::new();
    file.take(NAME_MAX + 1).read_to_end(&mut bytes).ok()?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let name = String::from_utf8(bytes.get(..end)?.to_vec()).ok()?;
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    is_plain.then_some(name)
}

fn read(file: &mut File, at: u64, length: u64) -> Option<Vec<u8>> {
    if length > TABLE_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_this_machine_says_its_name() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("/libc.so.6"))
            .unwrap();
        assert_eq!(of(Path::new(libc)).as_deref(), Some("libc.so.6"));
    }

    #[test]
    fn what_is_no_library_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lib.so");
        for bytes in [&b""[..], b"\x7fELF", &[0x7f; 4096], &[0xff; 64]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(of(&path), None);
        }
        let mut cut = std::fs::read("/proc/self/exe").unwrap();
        cut.truncate(200);
        std::fs::write(&path, cut).unwrap();
        assert_eq!(of(&path), None);
        assert_eq!(of(directory.path()), None);
        assert_eq!(of(Path::new("/nowhere")), None);
    }
}
