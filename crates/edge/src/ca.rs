//! The local certificate authority: a root that this machine's user may choose to trust, and leaves for host names
//! that have no certificate of their own.
//!
//! `tram trust` needs [`ensure`], [`Authority::certificate_path`] and [`Authority::fingerprint`]. Leaves are made while
//! a TLS handshake waits, which takes some hundred microseconds on P-256, and are kept by `certificates.rs`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::ToSpan;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

const CERTIFICATE: &str = "root.crt";
const KEY: &str = "root.key";

/// Roots are replaced by hand, so they last.
const ROOT_YEARS: i32 = 10;

/// Apple's and Chrome's limit for leaves is 398 days; ours are remade long before.
const LEAF_DAYS: i32 = 90;

/// Clocks on one machine agree, those of its containers' clients may not.
const BACKDATE_DAYS: i32 = 1;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system said no.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What we were doing.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kept files are not a certificate and its key.
    #[error("{} is not a usable authority: delete the directory and trust the new one", .directory.display())]
    Damaged {
        /// Where the files are.
        directory: PathBuf,
        /// What is wrong with them.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Making a key or certificate failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// rustls does not take what we made.
    #[error("cannot use a certificate that was just made")]
    Use(#[from] rustls::Error),
}

/// The root and the means to make leaves.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
}

/// Where the root certificate of a state directory is, whether or not it exists yet.
#[must_use]
pub fn certificate_path(state_dir: &Path) -> PathBuf {
    state_dir.join("ca").join(CERTIFICATE)
}

/// Loads the authority kept in `<state_dir>/ca`, or makes one. Idempotent. The key is readable by its owner alone.
pub fn ensure(state_dir: &Path) -> Result<Authority, Error> {
    let directory = state_dir.join("ca");
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    if !certificate.exists() || !key.exists() {
        create(&directory, &certificate, &key)?;
    }
    load(&directory, certificate, &key)
}

fn create(directory: &Path, certificate: &Path, key: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| Error::File {
            doing: "create",
            path: directory.to_owned(),
            source,
        })?;
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Tramontane");
    name.push(
        DnType::CommonName,
        format!(
            "Tramontane local authority {}",
            &hex::encode(Sha256::digest(pair.public_key_raw()))[..8]
        ),
    );
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, ROOT_YEARS * 365);
    let root = params.self_signed(&pair)?;
    // The key first: a certificate without its key is made anew, and nobody can have trusted it yet.
    write(key, 0o600, pair.serialize_pem().as_bytes())?;
    write(certificate, 0o644, root.pem().as_bytes())
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    let unfinished = path.with_extension("new");
    let failed = |source| Error::File {
        doing: "write",
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&unfinished)
        .map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

fn load(directory: &Path, path: PathBuf, key: &Path) -> Result<Authority, Error> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| Error::File {
            doing: "read",
            path: path.to_owned(),
            source,
        })
    };
    let damaged = |source: Box<dyn std::error::Error + Send + Sync>| Error::Damaged {
        directory: directory.to_owned(),
        source,
    };
    let (certificate_pem, key_pem) = (read(&path)?, read(key)?);
    let pair = KeyPair::from_pem(&key_pem).map_err(|error| damaged(error.into()))?;
    let certificate =
        CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| damaged(error.into()))?;
    let issuer = Issuer::from_ca_cert_pem(&certificate_pem, pair).map_err(|error| damaged(error.into()))?;
    Ok(Authority {
        issuer,
        certificate,
        path,
    })
}

/// From yesterday until `days` from today.
fn validity(params: &mut CertificateParams, days: i32) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |days: i32| {
        let day = today.saturating_add(days.days());
        rcgen::date_time_ymd(
            i32::from(day.year()),
            day.month().unsigned_abs(),
            day.day().unsigned_abs(),
        )
    };
    params.not_before = date(-BACKDATE_DAYS);
    params.not_after = date(days);
}

impl Authority {
    /// The root certificate's file, in PEM.
    #[must_use]
    pub fn certificate_path(&self) -> &Path {
        &self.path
    }

    /// The root certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the root certificate as `openssl x509 -fingerprint -sha256` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.certificate);
        digest
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect::<Vec<_>>()
            .join(":")
    }

    /// A certificate for one host name; `loopback` adds the loopback addresses, for clients that name no host.
    pub(crate) fn leaf(&self, host: &str, loopback: bool) -> Result<Arc<CertifiedKey>, Error> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Tramontane");
        params.distinguished_name = name;
        if loopback {
            params
                .subject_alt_names
                .push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
            params
                .subject_alt_names
                .push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, LEAF_DAYS);
        let leaf = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        Ok(Arc::new(CertifiedKey::new(
            vec![leaf.der().clone(), self.certificate.clone()],
            key,
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_authority_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = ensure(dir.path()).expect("a new authority");
        let again = ensure(dir.path()).expect("the same authority");
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        assert_eq!(first.certificate_path(), certificate_path(dir.path()));
        let mode = fs::metadata(dir.path().join("ca/root.key"))
            .expect("the key")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_authority_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        ensure(dir.path()).expect("a new authority");
        fs::write(dir.path().join("ca/root.crt"), "nonsense").expect("writable");
        let error = ensure(dir.path()).expect_err("damaged");
        assert!(error.to_string().contains("delete the directory"), "{error}");
    }
}
