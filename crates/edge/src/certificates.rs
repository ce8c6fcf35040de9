//! Which certificate a TLS client gets: a given one by exact name, a given wildcard, else a leaf of the local
//! authority, made once and kept.
//!
//! Given certificates are `certs/<name>.crt` with `certs/<name>.key` in the state directory, `_wildcard.example.com`
//! standing for `*.example.com`. [`Certificates::reload`] is called every few seconds and reads what changed.
//! Leaves are made only for hosts of the routing table or under the base domain, so nobody can have us sign at will.
//! The choice to know: a leaf is kept by what its certificate says of its time, not by how long ago it was made, since a
//! machine's clock may be set while we run.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::{self, Authority, Leaf};
use crate::table::Table;

/// Leaves kept: more hosts than this and the ones made first are made again.
const LEAVES_MAX: usize = 1024;

/// How the file name of a wildcard begins.
const WILDCARD: &str = "_wildcard.";

/// The certificates of one edge.
#[derive(Debug)]
pub(crate) struct Certificates {
    state_dir: PathBuf,
    directory: PathBuf,
    /// Whether the directory could not be read the last time.
    unreadable: AtomicBool,
    authority: ArcSwap<Authority>,
    table: Arc<ArcSwap<Table>>,
    given: ArcSwap<Given>,
    leaves: Mutex<Leaves>,
}

/// By host name, with the time when each was made.
type Leaves = HashMap<Box<str>, (Leaf, Instant)>;

#[derive(Debug, Default)]
struct Given {
    by_name: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// What the files looked like, to tell whether to read them again.
    seen: Vec<(PathBuf, SystemTime, u64)>,
}

impl Certificates {
    pub(crate) fn new(state_dir: &Path, authority: Authority, table: Arc<ArcSwap<Table>>) -> Self {
        let this = Self {
            state_dir: state_dir.to_owned(),
            directory: state_dir.join("certs"),
            unreadable: AtomicBool::new(false),
            authority: ArcSwap::from_pointee(authority),
            table,
            given: ArcSwap::default(),
            leaves: Mutex::default(),
        };
        this.reload();
        this
    }

    /// Reads the directory again if anything in it changed. A pair that does not fit keeps its former version, and all do
    /// while the directory cannot be read.
    pub(crate) fn reload(&self) {
        self.renew_authority();
        let before = self.given.load();
        let seen = match look(&self.directory) {
            // It need not be there, unless it was.
            Err(error) if error.kind() == io::ErrorKind::NotFound && before.seen.is_empty() => return,
            Err(error) => {
                if !self.unreadable.swap(true, Relaxed) {
                    tracing::warn!(%error, directory = %self.directory.display(), "the certificates cannot be read; those loaded before stay in force");
                }
                return;
            }
            Ok(seen) => seen,
        };
        self.unreadable.store(false, Relaxed);
        if seen == before.seen {
            return;
        }
        let mut by_name = HashMap::new();
        for (path, ..) in seen
            .iter()
            .filter(|(path, ..)| path.extension().is_some_and(|extension| extension == "crt"))
        {
            let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else {
                continue;
            };
            let name: Box<str> = stem.to_ascii_lowercase().into();
            match read_pair(path) {
                Ok(pair) => {
                    by_name.insert(name, Arc::new(pair));
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a certificate cannot be used");
                    if let Some(former) = before.by_name.get(&name) {
                        by_name.insert(name, Arc::clone(former));
                    }
                }
            }
        }
        tracing::info!(certificates = by_name.len(), "certificates loaded");
        self.given.store(Arc::new(Given { by_name, seen }));
    }

    /// Makes the root anew when the clock has left its time.
    fn renew_authority(&self) {
        let authority = self.authority.load();
        if authority.is_current(SystemTime::now()) {
            return;
        }
        match ca::ensure(&self.state_dir, authority.base_domain()) {
            Ok(anew) => self.authority.store(Arc::new(anew)),
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot make the certificate of the local authority anew"
            ),
        }
    }

    fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let given = self.given.load();
        if let Some(exact) = given.by_name.get(name) {
            return Some(Arc::clone(exact));
        }
        if let Some((_, parent)) = name.split_once('.')
            && let Some(wildcard) = given.by_name.get(&*format!("{WILDCARD}{parent}"))
        {
            return Some(Arc::clone(wildcard));
        }
        drop(given);
        self.table
            .load()
            .knows_host(name)
            .then(|| self.leaf(name, false))
            .flatten()
    }

    fn leaf(&self, name: &str, loopback: bool) -> Option<Arc<CertifiedKey>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((leaf, _)) = leaves.get(name) {
            if leaf.usable.contains(SystemTime::now()) {
                return Some(Arc::clone(&leaf.key));
            }
            tracing::info!(
                host = name,
                "a certificate is near its end, or the clock was set; it is made anew"
            );
        }
        let leaf = match self.authority.load().leaf(name, loopback) {
            Ok(leaf) => leaf,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    host = name,
                    "cannot make a certificate"
                );
                return None;
            }
        };
        if leaves.len() >= LEAVES_MAX
            && let Some(oldest) = leaves
                .iter()
                .min_by_key(|(_, (_, made))| *made)
                .map(|(name, _)| name.clone())
        {
            leaves.remove(&oldest);
        }
        let key = Arc::clone(&leaf.key);
        leaves.insert(name.into(), (leaf, Instant::now()));
        Some(key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.find(&name.to_ascii_lowercase()),
            None => self.leaf("localhost", true),
        }
    }
}

fn look(directory: &Path) -> io::Result<Vec<(PathBuf, SystemTime, u64)>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Followed, since ACME clients hand out links; one that leads nowhere yet is passed over.
        if let Ok(metadata) = fs::metadata(&path) {
            seen.push((path, metadata.modified()?, metadata.len()));
        }
    }
    seen.sort();
    Ok(seen)
}

fn read_pair(certificate: &Path) -> Result<CertifiedKey, Box<dyn std::error::Error>> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err("the file holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_file(certificate.with_extension("key"))?;
    let pair = CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&key)?);
    pair.keys_match()?;
    Ok(pair)
}

/// The settings of every TLS listener.
pub(crate) fn server_config(certificates: Arc<Certificates>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::account::Signals;
    use crate::table::Registry;

    fn certificates(dir: &Path) -> Certificates {
        let source = tram_types::routing::RoutingTable {
            version: 1,
            base_domain: "test".into(),
            ..Default::default()
        };
        let registry = Registry::new(Arc::new(Signals::new()), 1);
        let table = Table::compile(source, &Table::empty(), &registry).expect("a sound table");
        let authority = ca::ensure(dir, "test").expect("an authority");
        Certificates::new(dir, authority, Arc::new(ArcSwap::from_pointee(table)))
    }

    #[test]
    fn given_certificates_outlast_their_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pair = rcgen::KeyPair::generate().expect("a key");
        let given = rcgen::CertificateParams::new(vec!["a.test".to_owned()])
            .and_then(|params| params.self_signed(&pair))
            .expect("signs");
        let at = dir.path().join("certs");
        fs::create_dir(&at).expect("writable");
        fs::write(at.join("a.test.key"), pair.serialize_pem()).expect("writable");
        fs::write(at.join("a.test.crt"), given.pem()).expect("writable");
        let certificates = certificates(dir.path());
        let served = || certificates.find("a.test").expect("one").cert[0] == *given.der();
        assert!(served());
        fs::rename(&at, dir.path().join("away")).expect("writable");
        certificates.reload();
        assert!(served(), "while the directory is away");
        fs::rename(dir.path().join("away"), &at).expect("writable");
        fs::remove_file(at.join("a.test.crt")).expect("writable");
        certificates.reload();
        assert!(!served(), "taken away on purpose");
    }

    #[test]
    fn a_leaf_is_kept_until_the_clock_leaves_its_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let certificates = certificates(dir.path());
        let first = certificates.find("a.test").expect("a leaf");
        assert!(Arc::ptr_eq(&first, &certificates.find("a.test").expect("kept")));
        let usable = certificates.leaves.lock().expect("unpoisoned")["a.test"].0.usable;
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        assert!(usable.contains(now) && usable.contains(now + day * 29));
        assert!(!usable.contains(now + day * 31) && !usable.contains(now - day * 3));
        // As if the clock had stood elsewhere when it was made.
        let mut other = certificates
            .authority
            .load()
            .leaf("a.test", false)
            .expect("a leaf");
        other.usable = ca::Span::default();
        certificates
            .leaves
            .lock()
            .expect("unpoisoned")
            .insert("a.test".into(), (other.clone(), Instant::now()));
        assert!(!Arc::ptr_eq(
            &other.key,
            &certificates.find("a.test").expect("made anew")
        ));
    }
}
