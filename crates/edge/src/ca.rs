//! The local certificate authority: a root that this machine's user may choose to trust, and leaves for host names
//! that have no certificate of their own.
//!
//! Whoever trusts the root trusts it for the base domain, `localhost` and the loopback addresses: its certificate says
//! so, and no client takes a leaf for another name, whoever has the key. Other hosts get a leaf that signs itself, which
//! nobody trusts. A root that is kept and does not fit (another base domain, another time) is made anew with its own key
//! and name, so that leaves stay good for those who trusted the former one.
//!
//! `tram trust` needs [`ensure`], [`Authority::certificate_path`] and [`Authority::fingerprint`]. Leaves are made while
//! a TLS handshake waits, which takes some hundred microseconds on P-256, and are kept by `certificates.rs`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::ToSpan;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

const CERTIFICATE: &str = "root.crt";
const KEY: &str = "root.key";

/// Seconds of a day.
const DAY_S: i64 = 24 * 3600;

/// Roots are replaced by hand, so they last.
const ROOT_YEARS: i32 = 10;

/// Apple's and Chrome's limit for leaves is 398 days; ours are remade long before.
const LEAF_DAYS: i32 = 90;

/// Leaves are remade while so much of their time is left.
const LEAF_LEFT_DAYS: i32 = 60;

/// The loopback network of IPv4.
const LOOPBACK_V4: [u8; 4] = [127, 0, 0, 0];
const LOOPBACK_V4_BITS: u8 = 8;

/// Always among the names of this installation.
const LOCALHOST: &str = "localhost";

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
    base_domain: String,
    usable: Span,
}

/// A leaf, and when it may be handed out.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) usable: Span,
}

/// A time in which a certificate is good and will be for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    from_s: i64,
    until_s: i64,
}

impl Span {
    /// Of a certificate that must be good for `left_days` more.
    fn new(not_before_s: i64, not_after_s: i64, left_days: i32) -> Self {
        Self {
            from_s: not_before_s,
            until_s: not_after_s - i64::from(left_days) * DAY_S,
        }
    }

    pub(crate) fn contains(self, now: SystemTime) -> bool {
        let now_s = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let now_s = i64::try_from(now_s.as_secs()).unwrap_or(i64::MAX);
        (self.from_s..=self.until_s).contains(&now_s)
    }
}

/// Where the root certificate of a state directory is, whether or not it exists yet.
#[must_use]
pub fn certificate_path(state_dir: &Path) -> PathBuf {
    state_dir.join("ca").join(CERTIFICATE)
}

/// Loads the authority kept in `<state_dir>/ca`, or makes one, for names under `base_domain` and `localhost`. Idempotent.
/// The key is readable by its owner alone.
pub fn ensure(state_dir: &Path, base_domain: &str) -> Result<Authority, Error> {
    let directory = state_dir.join("ca");
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let base_domain = base_domain.to_ascii_lowercase();
    if !certificate.exists() || !key.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| Error::File {
                doing: "create",
                path: directory.clone(),
                source,
            })?;
        let pair = KeyPair::generate()?;
        // The key first: a certificate without its key is made anew, and nobody can have trusted it yet.
        write(&key, 0o600, pair.serialize_pem().as_bytes())?;
        issue(&pair, &certificate, &base_domain)?;
    }
    let loaded = load(&directory, certificate.clone(), &key, &base_domain)?;
    match loaded.misfit(SystemTime::now()) {
        None => Ok(loaded),
        Some(why) => {
            tracing::warn!(
                base_domain,
                "the certificate of the local authority {why} and is made anew: run `tram trust` again where it is trusted"
            );
            issue(loaded.issuer.key(), &certificate, &base_domain)?;
            load(&directory, certificate, &key, &base_domain)
        }
    }
}

/// Writes a root for a key.
fn issue(pair: &KeyPair, certificate: &Path, base_domain: &str) -> Result<(), Error> {
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
    let domains = domains(base_domain)
        .into_iter()
        .map(|domain| GeneralSubtree::DnsName(domain.to_owned()));
    let loopback = [
        CidrSubnet::from_v4_prefix(LOOPBACK_V4, LOOPBACK_V4_BITS),
        CidrSubnet::from_v6_prefix(Ipv6Addr::LOCALHOST.octets(), 128),
    ];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: domains.chain(loopback.map(GeneralSubtree::IpAddress)).collect(),
        excluded_subtrees: Vec::new(),
    });
    validity(&mut params, ROOT_YEARS * 365);
    let root = params.self_signed(pair)?;
    write(certificate, 0o644, root.pem().as_bytes())
}

/// What the root may sign for.
fn domains(base_domain: &str) -> Vec<&str> {
    match base_domain {
        "" | LOCALHOST => vec![LOCALHOST],
        other => vec![other, LOCALHOST],
    }
}

fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|label| label.is_empty() || label.ends_with('.'))
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

fn load(directory: &Path, path: PathBuf, key: &Path, base_domain: &str) -> Result<Authority, Error> {
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
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&certificate).map_err(|error| damaged(error.into()))?;
    let validity = parsed.validity();
    let usable = Span::new(
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
        LEAF_DAYS,
    );
    let issuer = Issuer::from_ca_cert_pem(&certificate_pem, pair).map_err(|error| damaged(error.into()))?;
    Ok(Authority {
        issuer,
        certificate,
        path,
        base_domain: base_domain.to_owned(),
        usable,
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
    /// Why the root must be made anew, if it must.
    fn misfit(&self, now: SystemTime) -> Option<&'static str> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate).ok()?;
        let constraints = parsed.name_constraints().ok().flatten();
        let mut permitted: Vec<&str> = constraints
            .iter()
            .flat_map(|found| found.value.permitted_subtrees.iter().flatten())
            .filter_map(|subtree| match subtree.base {
                GeneralName::DNSName(name) => Some(name),
                _ => None,
            })
            .collect();
        let mut wanted = domains(&self.base_domain);
        permitted.sort_unstable();
        wanted.sort_unstable();
        if permitted != wanted {
            Some("is not for the names of this installation alone")
        } else if !self.usable.contains(now) {
            Some("is not good at this time")
        } else {
            None
        }
    }

    /// Whether the root is good now; the clock may have jumped since it was loaded.
    pub(crate) fn is_current(&self, now: SystemTime) -> bool {
        self.usable.contains(now)
    }

    pub(crate) fn base_domain(&self) -> &str {
        &self.base_domain
    }

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

    /// A certificate for one host name, signed by the root if the root may, else by itself; `loopback` adds the loopback
    /// addresses, for clients that name no host.
    pub(crate) fn leaf(&self, host: &str, loopback: bool) -> Result<Leaf, Error> {
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
        let usable = Span::new(
            params.not_before.unix_timestamp(),
            params.not_after.unix_timestamp(),
            LEAF_LEFT_DAYS,
        );
        let ours = domains(&self.base_domain)
            .iter()
            .any(|domain| is_under(host, domain));
        let chain = if ours {
            let leaf = params.signed_by(&pair, &self.issuer)?;
            vec![leaf.der().clone(), self.certificate.clone()]
        } else {
            vec![params.self_signed(&pair)?.der().clone()]
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        Ok(Leaf {
            key: Arc::new(CertifiedKey::new(chain, key)),
            usable,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_authority_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = ensure(dir.path(), "cloud.test").expect("a new authority");
        let again = ensure(dir.path(), "cloud.test").expect("the same authority");
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
        ensure(dir.path(), "cloud.test").expect("a new authority");
        fs::write(dir.path().join("ca/root.crt"), "nonsense").expect("writable");
        let error = ensure(dir.path(), "cloud.test").expect_err("damaged");
        assert!(error.to_string().contains("delete the directory"), "{error}");
    }

    /// Makes the kept root what an earlier version, or a clock elsewhere, would have made of it.
    fn spoil(dir: &Path, with: impl FnOnce(&mut CertificateParams)) {
        let pair =
            KeyPair::from_pem(&fs::read_to_string(dir.join("ca/root.key")).expect("the key")).expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        with(&mut params);
        let root = params.self_signed(&pair).expect("signs");
        fs::write(dir.join("ca/root.crt"), root.pem()).expect("writable");
    }

    #[test]
    fn a_root_for_all_names_or_another_time_is_made_anew_with_its_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = ensure(dir.path(), "cloud.test").expect("a new authority");
        let public = first.issuer.key().public_key_raw().to_vec();
        let (constraints, now) = (
            || {
                Some(NameConstraints {
                    permitted_subtrees: ["cloud.test", LOCALHOST]
                        .map(|name| GeneralSubtree::DnsName(name.into()))
                        .to_vec(),
                    excluded_subtrees: Vec::new(),
                })
            },
            SystemTime::now(),
        );
        let spoils: [fn(&mut CertificateParams); 3] = [
            |_| {},
            |params| params.not_before = rcgen::date_time_ymd(2200, 1, 1),
            |params| params.not_after = rcgen::date_time_ymd(1971, 1, 1),
        ];
        for (index, spoiled) in spoils.into_iter().enumerate() {
            spoil(dir.path(), |params| {
                if index > 0 {
                    params.name_constraints = constraints();
                }
                spoiled(params);
            });
            let before = fs::read(dir.path().join("ca/root.crt")).expect("is there");
            let anew = ensure(dir.path(), "cloud.test").expect("made anew");
            assert_ne!(
                before,
                fs::read(anew.certificate_path()).expect("is there"),
                "{index}"
            );
            assert_eq!(anew.misfit(now), None, "{index}");
            assert_eq!(anew.issuer.key().public_key_raw(), public, "{index}");
        }
        let again = ensure(dir.path(), "cloud.test").expect("kept");
        let other = ensure(dir.path(), "other.test").expect("another base domain");
        assert_ne!(again.fingerprint(), other.fingerprint());
    }

    #[test]
    fn names_elsewhere_are_signed_by_themselves() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = ensure(dir.path(), "cloud.test").expect("a new authority");
        let chain = |host: &str| authority.leaf(host, false).expect("a leaf").key.cert.len();
        for ours in ["cloud.test", "a.b.cloud.test", "x.localhost", "localhost"] {
            assert_eq!(chain(ours), 2, "{ours}");
        }
        for foreign in ["example.org", "evilcloud.test", "cloud.test.example.org"] {
            assert_eq!(chain(foreign), 1, "{foreign}");
        }
    }
}
