//! Which certificate a TLS client gets: a given one by exact name, a given wildcard, else a leaf of the local
//! authority, made once and kept.
//!
//! Given certificates are `certs/<name>.crt` with `certs/<name>.key` in the state directory, `_wildcard.example.com`
//! standing for `*.example.com`. [`Certificates::reload`] is called every few seconds and reads what changed.
//! Leaves are made only for hosts of the routing table or under the base domain, so nobody can have us sign at will.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::Authority;
use crate::table::Table;

/// Leaves kept: more hosts than this and the ones made first are made again.
const LEAVES_MAX: usize = 1024;

/// Leaves are remade well before they expire.
const LEAF_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// How the file name of a wildcard begins.
const WILDCARD: &str = "_wildcard.";

/// The certificates of one edge.
#[derive(Debug)]
pub(crate) struct Certificates {
    directory: PathBuf,
    authority: Authority,
    table: Arc<ArcSwap<Table>>,
    given: ArcSwap<Given>,
    leaves: Mutex<Leaves>,
}

/// By host name, with the time when each was made.
type Leaves = HashMap<Box<str>, (Arc<CertifiedKey>, Instant)>;

#[derive(Debug, Default)]
struct Given {
    by_name: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// What the files looked like, to tell whether to read them again.
    seen: Vec<(PathBuf, SystemTime, u64)>,
}

impl Certificates {
    pub(crate) fn new(state_dir: &Path, authority: Authority, table: Arc<ArcSwap<Table>>) -> Self {
        let this = Self {
            directory: state_dir.join("certs"),
            authority,
            table,
            given: ArcSwap::default(),
            leaves: Mutex::default(),
        };
        this.reload();
        this
    }

    /// Reads the directory again if anything in it changed. A pair that does not fit keeps its former version.
    pub(crate) fn reload(&self) {
        let seen = look(&self.directory);
        let before = self.given.load();
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
        if let Some((leaf, made)) = leaves.get(name)
            && made.elapsed() < LEAF_KEEP
        {
            return Some(Arc::clone(leaf));
        }
        let leaf = match self.authority.leaf(name, loopback) {
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
        leaves.insert(name.into(), (Arc::clone(&leaf), Instant::now()));
        Some(leaf)
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

fn look(directory: &Path) -> Vec<(PathBuf, SystemTime, u64)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut seen: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            // Followed, since ACME clients hand out links.
            let metadata = fs::metadata(entry.path()).ok()?;
            Some((entry.path(), metadata.modified().ok()?, metadata.len()))
        })
        .collect();
    seen.sort();
    seen
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
