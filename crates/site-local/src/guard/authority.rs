//! The authority of this machine that instances with bound secrets trust: for the hosts of their secrets, and no other.
//!
//! One key for the site, kept; a root for each instance, which its certificate constrains to its hosts, so that whoever
//! got hold of the key could still speak for no other name to it. The one design choice to know: roots have the same key
//! and the same name, so a leaf needs to know no instance, a restart needs no list, and a copy of an instance that holds
//! an older root in memory takes the same leaves.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::ToSpan;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

/// Instances keep the root that they were started with.
const ROOT_DAYS: i32 = 10 * 365;
/// Longer than a leaf is used.
const LEAF_DAYS: i32 = 7;
/// Leaves are made anew after this.
const LEAF_USED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Clocks of instances are this machine's; those of what it was restored from may have been behind.
const BACKDATE_DAYS: i32 = 1;
/// Leaves that are kept: some KiB each, and one takes a part of a millisecond to make.
const LEAVES_MAX: usize = 1024;
/// What is spoken with programs. HTTP/2 is not: one way to read a head is one less to be wrong about.
pub(super) const PROTOCOL: &[u8] = b"http/1.1";

#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<String, (Instant, Arc<ServerConfig>)>>,
}

impl Authority {
    /// Loads the key that is kept in `directory`, or makes one. Only the owner can read it.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("key.pem");
        let pair = match fs::read_to_string(&path) {
            Ok(text) => KeyPair::from_pem(&text).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                let pair = KeyPair::generate().map_err(io::Error::other)?;
                let beside = path.with_extension("new");
                let mut file = OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&beside)?;
                file.write_all(pair.serialize_pem().as_bytes())?;
                file.sync_all()?;
                fs::rename(&beside, &path)?;
                pair
            }
            Err(error) => return Err(error),
        };
        let params = root_params(&pair, &[]).map_err(io::Error::other)?;
        Ok(Self {
            issuer: Issuer::new(params, pair),
            leaves: Mutex::default(),
        })
    }

    /// A root for an instance that reaches these hosts, in PEM.
    pub(crate) fn root(&self, hosts: &[String]) -> Result<String, rcgen::Error> {
        let params = root_params(self.issuer.key(), hosts)?;
        Ok(params.self_signed(self.issuer.key())?.pem())
    }

    /// How to be this host.
    pub(super) fn server(
        &self,
        host: &str,
    ) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error + Send + Sync>> {
        let kept = self
            .leaves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .cloned();
        if let Some((made, server)) = kept
            && made.elapsed() < LEAF_USED_FOR
        {
            return Ok(server);
        }
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, LEAF_DAYS);
        let leaf = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let server = Arc::new(server);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        leaves.insert(host.to_owned(), (Instant::now(), Arc::clone(&server)));
        Ok(server)
    }
}

fn root_params(pair: &KeyPair, hosts: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Tramontane");
    let mark = hex::encode(Sha256::digest(pair.public_key_raw()));
    let mark = mark.get(..8).unwrap_or_default();
    name.push(DnType::CommonName, format!("Tramontane bound secrets {mark}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if !hosts.is_empty() {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
            excluded_subtrees: Vec::new(),
        });
    }
    validity(&mut params, ROOT_DAYS);
    Ok(params)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, UnixTime};

    use super::*;

    /// Whether a program that trusts `root` takes this host's certificate.
    fn takes(root: &str, authority: &Authority, host: &str) -> bool {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&pair, &authority.issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
            .unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            super::super::provider(),
        )
        .build()
        .unwrap();
        let name = host.to_owned().try_into().unwrap();
        verifier
            .verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn a_root_is_good_for_its_hosts_alone_and_for_those_of_an_earlier_process() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("guard");
        let hosts = ["api.example.org".to_owned()];
        let first = Authority::open(&place).unwrap();
        let root = first.root(&hosts).unwrap();
        let again = Authority::open(&place).unwrap();
        assert!(takes(&root, &again, "api.example.org"));
        assert!(!takes(&root, &again, "www.example.net"));
        assert!(!takes(&root, &again, "example.org"));
        assert!(again.server("api.example.org").is_ok());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place.join("key.pem")), mode(&place)), (0o600, 0o700));
    }
}
