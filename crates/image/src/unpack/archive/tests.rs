//! Archives in every dialect, read back.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, UnpackError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        archive.read_to_end(&mut data).map_err(UnpackError::Compression)?;
        all.push((entry, data));
    }
    Ok(all)
}

fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o640);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_600_000_000);
    header.set_cksum();
    header
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    all.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    all
}

/// One entry with the given extended header in front.
fn with_pax(records: &[(&str, &[u8])], header: &tar::Header, data: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        write!(text, "{length} {key}=").unwrap();
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    let pax = self::header("pax", tar::EntryType::XHeader, text.len() as u64);
    [
        pax.as_bytes().to_vec(),
        padded(&text),
        header.as_bytes().to_vec(),
        padded(data),
        vec![0; 1024],
    ]
    .concat()
}

#[test]
fn the_tar_crate_writes_what_is_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/name", "directory/".repeat(30));
    let mut plain = header("a", tar::EntryType::Regular, 5);
    builder.append_data(&mut plain, &long, &b"hello"[..]).unwrap();
    let mut link = header("b", tar::EntryType::Symlink, 0);
    builder
        .append_link(&mut link, "link", format!("{long}/target"))
        .unwrap();
    let mut ustar = tar::Header::new_ustar();
    ustar.set_path(format!("{}/x", "p".repeat(120))).unwrap();
    ustar.set_size(0);
    ustar.set_cksum();
    builder.append(&ustar, &b""[..]).unwrap();
    let all = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(all[0].0.path, long.as_bytes());
    assert_eq!(all[0].1, b"hello");
    assert_eq!(
        (all[0].0.mode, all[0].0.uid, all[0].0.gid, all[0].0.mtime_seconds),
        (0o640, 7, 8, 1_600_000_000)
    );
    assert_eq!(
        (all[1].0.kind, all[1].0.link.clone()),
        (Kind::Symlink, format!("{long}/target").into_bytes())
    );
    assert_eq!(all[2].0.path, format!("{}/x", "p".repeat(120)).as_bytes());
}

#[test]
fn an_archive_may_end_right_after_its_last_byte() {
    let bytes = [
        header("a", tar::EntryType::Regular, 5).as_bytes().to_vec(),
        b"hello".to_vec(),
    ]
    .concat();
    assert_eq!(entries(&bytes).unwrap()[0].1, b"hello");
    let mut archive = Archive::new(&bytes[..bytes.len() - 1]);
    archive.next_entry().unwrap();
    assert!(archive.next_entry().is_err(), "a byte less is a damaged file");
}

#[test]
fn extended_headers_override() {
    let plain = header("short", tar::EntryType::Regular, 0);
    let name = "n".repeat(300);
    let bytes = with_pax(
        &[
            ("path", name.as_bytes()),
            ("size", b"3"),
            ("uid", b"100000"),
            ("mtime", b"12.5"),
            ("SCHILY.xattr.user.a", b"\0\xff"),
        ],
        &plain,
        b"abc",
    );
    let all = entries(&bytes).unwrap();
    let (entry, data) = &all[0];
    assert_eq!(
        (entry.path.as_slice(), data.as_slice(), entry.uid),
        (name.as_bytes(), &b"abc"[..], 100_000)
    );
    assert_eq!((entry.mtime_seconds, entry.mtime_nanos), (12, 500_000_000));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), vec![0, 0xff])]);
}

#[test]
fn sparse_files_in_four_formats() {
    let pieces = [
        Piece {
            offset: 1000,
            bytes: 3,
        },
        Piece {
            offset: 5000,
            bytes: 2,
        },
    ];
    let check = |bytes: &[u8], what: &str| {
        let all = entries(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(all[0].0.sparse.as_deref(), Some(&pieces[..]), "{what}");
        assert_eq!(
            (all[0].0.size, all[0].1.as_slice(), all[0].0.path.as_slice()),
            (6000, &b"abcde"[..], &b"real"[..]),
            "{what}"
        );
        assert_eq!(all[1].0.path, b"next", "{what}");
    };
    let next = header("next", tar::EntryType::Regular, 0).as_bytes().to_vec();
    let and_next = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 1024);
        [bytes, next.clone(), vec![0; 1024]].concat()
    };

    let mut gnu = header("real", tar::EntryType::GNUSparse, 5);
    let fields = gnu.as_gnu_mut().unwrap();
    fields.set_real_size(6000);
    fields.sparse[0].set_offset(1000);
    fields.sparse[0].set_length(3);
    fields.set_is_extended(true);
    gnu.set_cksum();
    let mut extension = tar::GnuExtSparseHeader::new();
    extension.sparse[0].set_offset(5000);
    extension.sparse[0].set_length(2);
    let bytes = [
        gnu.as_bytes().to_vec(),
        extension.as_bytes().to_vec(),
        padded(b"abcde"),
        vec![0; 1024],
    ]
    .concat();
    check(&and_next(bytes), "GNU");

    let plain = header("real", tar::EntryType::Regular, 5);
    let records: [(&str, &[u8]); 6] = [
        ("GNU.sparse.size", b"6000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"5000"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    check(&and_next(with_pax(&records, &plain, b"abcde")), "pax 0.0");

    let made_up = header("GNUSparseFile.1/x", tar::EntryType::Regular, 5);
    let records: [(&str, &[u8]); 3] = [
        ("GNU.sparse.size", b"6000"),
        ("GNU.sparse.map", b"1000,3,5000,2"),
        ("GNU.sparse.name", b"real"),
    ];
    check(&and_next(with_pax(&records, &made_up, b"abcde")), "pax 0.1");

    let data = [padded(b"2\n1000\n3\n5000\n2\n"), b"abcde".to_vec()].concat();
    let made_up = header("GNUSparseFile.1/x", tar::EntryType::Regular, data.len() as u64);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"6000"),
        ("GNU.sparse.name", b"real"),
    ];
    check(&and_next(with_pax(&records, &made_up, &data)), "pax 1.0");
}

#[test]
fn nonsense_is_refused_within_bounds() {
    let sparse = |map: &[u8]| {
        let plain = header("x", tar::EntryType::Regular, 5);
        entries(&with_pax(
            &[("GNU.sparse.map", map), ("GNU.sparse.size", b"6000")],
            &plain,
            b"abcde",
        ))
    };
    assert!(sparse(b"1000,3,999,2").is_err(), "out of order");
    assert!(sparse(b"1000,3,7000,2").is_err(), "beyond the end");
    assert!(sparse(b"1000,4").is_err(), "less than the data");
    assert!(sparse(b"18446744073709551615,5").is_err(), "overflow");
    let long = header("l", tar::EntryType::GNULongName, 10 << 30);
    assert!(entries(long.as_bytes()).is_err(), "a name of 10 GiB is not read");
    let pax = header("p", tar::EntryType::XHeader, 10 << 30);
    assert!(entries(pax.as_bytes()).is_err());
    let cut = header("f", tar::EntryType::Regular, 5000);
    assert!(entries(&[cut.as_bytes().to_vec(), vec![1; 100]].concat()).is_err());
    assert!(entries(&[1; 512]).is_err(), "no checksum");
    let huge = with_pax(
        &[("size", b"18446744073709551615")],
        &header("h", tar::EntryType::Regular, 0),
        b"",
    );
    assert!(entries(&huge).is_err());
    let odd = header("odd", tar::EntryType::new(b'M'), 0);
    assert!(entries(odd.as_bytes()).is_err(), "volumes of tapes are no layers");
}

proptest! {
    /// Flipped bytes in a real archive and plain noise never make the reader panic or read without end.
    #[test]
    fn damaged_archives_never_panic(flips in proptest::collection::vec((0_usize..3000, any::<u8>()), 0..12), noise in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let plain = header("real", tar::EntryType::Regular, 5);
        let mut bytes = with_pax(&[("path", b"a/b"), ("GNU.sparse.map", b"0,5"), ("mtime", b"1.5")], &plain, b"abcde");
        for (at, value) in flips {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        let _ = entries(&bytes);
        let _ = entries(&noise);
    }
}
