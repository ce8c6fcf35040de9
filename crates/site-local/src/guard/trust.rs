//! What an instance with bound secrets is given so that its programs trust this machine for their hosts.
//!
//! The image's own bundle of authorities with ours behind it, at the places where programs look, and variables for
//! those that bring a bundle of their own. The one design choice to know: the bundle is read from the image's layers as
//! the image would see them, every link resolved inside the layer: an image is written by strangers, and a link in it
//! may point at any file of this machine.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use tram_sandbox::protocol::ConfigFile;

/// Where programs find all authorities; written in any image.
pub(crate) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Ours alone; Debian's and Alpine's `update-ca-certificates` take it from there.
pub(crate) const ROOT: &str = "/usr/local/share/ca-certificates/tramontane-bound-secrets.crt";
/// Where images keep their bundle: Debian and Alpine, Red Hat (before and behind its links), SUSE, Alpine's LibreSSL.
const BUNDLES: [&str; 5] = [
    BUNDLE,
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Larger than any bundle, and bounds what an image can make us read.
const BUNDLE_BYTES_MAX: u64 = 2 << 20;
const MODE: u32 = 0o644;

/// Variables with which programs are told of a bundle: OpenSSL and Go, Python's requests and pip, curl, git, Amazon's.
const BUNDLE_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
];
/// Variables with which programs are told of one more authority: Node.js, Deno.
const ROOT_VARIABLES: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// The variables; what the image or the definition sets itself wins.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    let of = |value: &'static str| move |name: &&str| ((*name).to_owned(), value.to_owned());
    let bundle = BUNDLE_VARIABLES.iter().map(of(BUNDLE));
    bundle.chain(ROOT_VARIABLES.iter().map(of(ROOT)))
}

/// The files. `layers`: topmost first. Blocks on files.
pub(crate) fn files(root: &str, layers: &[PathBuf]) -> Vec<ConfigFile> {
    let found = BUNDLES
        .iter()
        .find_map(|path| Some((*path, of_image(layers, path)?)));
    let (place, mut bundle) = match found {
        Some((place, bundle)) => (place, bundle),
        // An image without authorities, as a program has that brings its own: those of this machine do it no harm.
        None => (BUNDLE, of_machine().unwrap_or_default()),
    };
    if !bundle.ends_with(b"\n") && !bundle.is_empty() {
        bundle.push(b'\n');
    }
    bundle.extend_from_slice(root.as_bytes());
    let file = |path: &str, content: &[u8]| ConfigFile {
        path: path.into(),
        content: content.to_vec(),
        mode: MODE,
        uid: 0,
        gid: 0,
    };
    let mut files = vec![file(ROOT, root.as_bytes()), file(BUNDLE, &bundle)];
    if place != BUNDLE {
        files.push(file(place, &bundle));
    }
    files
}

fn of_machine() -> Option<Vec<u8>> {
    BUNDLES.iter().find_map(|path| read(File::open(path).ok()?).ok())
}

/// A bundle as the image has it; `None`: it has none there.
fn of_image(layers: &[PathBuf], path: &str) -> Option<Vec<u8>> {
    // Looked at before it is opened: what is no file may do something when it is.
    let (layer, found) = layers
        .iter()
        .find_map(|layer| Some((layer, inside(layer, path, OFlags::PATH).ok()?)))?;
    // A device there says that the file of a layer below is gone.
    found.metadata().ok()?.is_file().then_some(())?;
    read(inside(layer, path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?).ok()
}

fn inside(layer: &Path, path: &str, how: OFlags) -> io::Result<File> {
    let root = File::open(layer)?;
    let fd = rustix::fs::openat2(
        &root,
        path,
        how | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    Ok(fd.into())
}

fn read(file: File) -> io::Result<Vec<u8>> {
    const BEGINNING: &[u8] = b"-----BEGIN ";
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    file.take(BUNDLE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let whole = u64::try_from(bytes.len()).is_ok_and(|length| length <= BUNDLE_BYTES_MAX);
    let certificates = bytes.windows(BEGINNING.len()).any(|window| window == BEGINNING);
    if whole && certificates {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const OURS: &str = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";
    const THEIRS: &str = "-----BEGIN CERTIFICATE-----\ntheirs\n-----END CERTIFICATE-----";

    fn text(files: &[ConfigFile], path: &str) -> String {
        let file = files.iter().find(|file| file.path == Path::new(path)).unwrap();
        String::from_utf8(file.content.clone()).unwrap()
    }

    #[test]
    fn the_images_own_bundle_gets_ours_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        let place = lower.join("etc/pki/ca-trust/extracted/pem");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(&upper).unwrap();
        fs::write(place.join("tls-ca-bundle.pem"), THEIRS).unwrap();
        let files = files(OURS, &[upper, lower]);
        let both = format!("{THEIRS}\n{OURS}");
        assert_eq!(text(&files, BUNDLE), both);
        assert_eq!(
            text(&files, "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
            both
        );
        assert_eq!(text(&files, ROOT), OURS);
    }

    #[test]
    fn a_link_in_an_image_leads_to_no_file_of_the_machine() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("private.pem");
        fs::write(&outside, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir_all(layer.join("etc/ssl/certs")).unwrap();
        for target in [outside.clone(), PathBuf::from("../../../../private.pem")] {
            let link = layer.join("etc/ssl/certs/ca-certificates.crt");
            let _absent = fs::remove_file(&link);
            symlink(target, &link).unwrap();
            let files = files(OURS, std::slice::from_ref(&layer));
            assert!(!text(&files, BUNDLE).contains("PRIVATE"));
            assert!(text(&files, BUNDLE).ends_with(OURS));
        }
    }
}
