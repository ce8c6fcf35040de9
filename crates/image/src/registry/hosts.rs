//! Where a registry is reached: containerd's hosts directory, and the defaults without one.
//!
//! ```text
//! <directory>/docker.io/hosts.toml
//!     server = "https://registry-1.docker.io"
//!     [host."https://mirror.example.com"]
//!       capabilities = ["pull", "resolve"]
//!       ca = "/etc/tramontane/mirror.pem"
//!       client = [["ours.pem", "ours.key"]]
//!       dial_timeout = "3s"
//! <directory>/docker.io/credentials.toml        # ours: containerd keeps these elsewhere
//!     [host."mirror.example.com"]
//!       username = "reader"
//!       password = "secret"
//! <directory>/_default/hosts.toml               # for every registry without a directory of its own
//! ```
//!
//! Files are read anew for every pull, so that a change needs no restart. Unknown keys are refused: a
//! misspelt `skip_verify` must not go unnoticed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::Credentials;
use crate::error::Error;
use crate::reference::DEFAULT_REGISTRY;

/// Where Docker Hub really is.
const DOCKER_HUB: &str = "https://registry-1.docker.io";
/// Configuration files are small.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How registries are reached. The default knows no files: every registry under its own name, https, and http
/// for loopback addresses.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    directory: Option<PathBuf>,
    plain_http: Vec<String>,
    credentials: BTreeMap<String, Credentials>,
}

/// One address a registry may be reached under.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Everything before `/<repository>/manifests/…`; ends in `/v2` unless overridden.
    pub base: Url,
    /// Host and port, for messages and credentials.
    pub host: String,
    /// Whether this is the registry itself rather than a mirror of it.
    pub is_server: bool,
    /// May answer what a tag stands for.
    pub resolve: bool,
    /// May hand out manifests by digest and layers.
    pub pull: bool,
    /// Do not check its certificate.
    pub skip_verify: bool,
    /// Authorities to trust beside the system's.
    pub authorities: Vec<PathBuf>,
    /// The certificate to show it.
    pub client: Option<ClientCertificate>,
    /// To a connection, if not as long as everywhere.
    pub dial_timeout: Option<Duration>,
    /// Sent with every request.
    pub headers: HeaderMap,
    /// What the operator configured for it.
    pub credentials: Option<Credentials>,
}

/// A certificate of ours, and its key, as PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// The certificate; the key as well when it has no file of its own.
    pub certificate: PathBuf,
    /// The key.
    pub key: Option<PathBuf>,
}

impl RegistryConfig {
    /// Reads the hosts files under `directory`, each when it is needed. A missing directory is an empty one.
    #[must_use]
    pub fn from_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
            ..Self::default()
        }
    }

    /// Speaks plain http to this registry (host, with port if it has one).
    #[must_use]
    pub fn allow_plain_http(mut self, registry: impl Into<String>) -> Self {
        self.plain_http.push(registry.into());
        self
    }

    /// Credentials for a host (with port if it has one), used when a pull brings none.
    #[must_use]
    pub fn with_credentials(mut self, host: impl Into<String>, credentials: Credentials) -> Self {
        self.credentials.insert(host.into(), credentials);
        self
    }

    /// The addresses to try for `registry`, in order; the registry itself is last.
    pub fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, Error> {
        let Some((directory, files)) = self.files(registry)? else {
            let none = BTreeMap::new();
            let server = self
                .server_url(registry, None)
                .and_then(|url| self.endpoint(url, &HostFile::default(), true, &none, Path::new("")))
                .map_err(|reason| Error::Protocol {
                    registry: registry.to_owned(),
                    reason,
                })?;
            return Ok(vec![self.named(server, registry, &none)]);
        };
        let path = directory.join("hosts.toml");
        let refused = |reason: String| Error::Configuration {
            path: path.clone(),
            reason,
        };
        let mut endpoints = Vec::new();
        for (address, host) in files.hosts.mirrors(&files.text) {
            let url = address_url(address).map_err(&refused)?;
            endpoints.push(
                self.endpoint(url, host, false, &files.credentials, &directory)
                    .map_err(&refused)?,
            );
        }
        let own = files.hosts.own();
        let url = self
            .server_url(registry, files.hosts.server.as_deref())
            .map_err(&refused)?;
        let server = self
            .endpoint(url, &own, true, &files.credentials, &directory)
            .map_err(&refused)?;
        endpoints.push(self.named(server, registry, &files.credentials));
        Ok(endpoints)
    }

    /// The registry's own address.
    fn server_url(&self, registry: &str, server: Option<&str>) -> Result<Url, String> {
        match server {
            Some(server) => address_url(server),
            None if registry == DEFAULT_REGISTRY => address_url(DOCKER_HUB),
            None if self.is_plain(registry) => address_url(&format!("http://{registry}")),
            None => address_url(&format!("https://{registry}")),
        }
    }

    /// Credentials may be written under the registry's name as well as the address it is reached under.
    fn named(&self, mut server: Endpoint, registry: &str, files: &BTreeMap<String, Credentials>) -> Endpoint {
        if server.credentials.is_none() {
            server.credentials = files
                .get(registry)
                .or_else(|| self.credentials.get(registry))
                .cloned();
        }
        server
    }

    fn endpoint(
        &self,
        mut base: Url,
        file: &HostFile,
        is_server: bool,
        credentials: &BTreeMap<String, Credentials>,
        directory: &Path,
    ) -> Result<Endpoint, String> {
        let host = host_and_port(&base);
        if !file.override_path && !base.path().ends_with("/v2") {
            let path = format!("{}/v2", base.path().trim_end_matches('/'));
            base.set_path(&path);
        }
        let capable = |name: &str| {
            file.capabilities
                .as_ref()
                .is_none_or(|list| list.iter().any(|item| item == name))
        };
        let mut headers = HeaderMap::new();
        for (name, values) in &file.header {
            let name = HeaderName::try_from(name).map_err(|_| format!("`{name}` is not a header name"))?;
            for value in values.list() {
                let value = HeaderValue::try_from(value)
                    .map_err(|_| format!("the value of `{name}` is no header value"))?;
                headers.append(name.clone(), value);
            }
        }
        Ok(Endpoint {
            is_server,
            resolve: capable("resolve"),
            pull: capable("pull"),
            skip_verify: file.skip_verify,
            authorities: file.ca.list().iter().map(|path| directory.join(path)).collect(),
            client: file.client.one(directory)?,
            dial_timeout: file
                .dial_timeout
                .as_deref()
                .map(|text| {
                    go_duration(text)
                        .ok_or_else(|| format!("dial_timeout `{text}` is not a time such as `5s`"))
                })
                .transpose()?,
            headers,
            credentials: credentials
                .get(&host)
                .or_else(|| self.credentials.get(&host))
                .cloned(),
            base,
            host,
        })
    }

    fn is_plain(&self, registry: &str) -> bool {
        self.plain_http.iter().any(|plain| plain == registry) || is_loopback(registry)
    }

    /// The files that apply to `registry`: its own directory's, else the default's.
    fn files(&self, registry: &str) -> Result<Option<(PathBuf, Files)>, Error> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        // containerd's second spelling, for file systems that take no colon.
        let without_colon = registry
            .rsplit_once(':')
            .map(|(host, port)| format!("{host}_{port}_"));
        let names = [
            Some(registry.to_owned()),
            without_colon,
            Some("_default".to_owned()),
        ];
        for name in names.into_iter().flatten() {
            let candidate = directory.join(name);
            let text = read(&candidate.join("hosts.toml"))?;
            let credentials = read(&candidate.join("credentials.toml"))?;
            if text.is_none() && credentials.is_none() {
                continue;
            }
            let text = text.unwrap_or_default();
            let hosts = parse(&text, &candidate.join("hosts.toml"))?;
            let credentials: CredentialsFile = parse(
                &credentials.unwrap_or_default(),
                &candidate.join("credentials.toml"),
            )?;
            return Ok(Some((
                candidate,
                Files {
                    text,
                    hosts,
                    credentials: credentials.host,
                },
            )));
        }
        Ok(None)
    }
}

struct Files {
    text: String,
    hosts: HostsFile,
    credentials: BTreeMap<String, Credentials>,
}

/// `hosts.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, HostFile>,
    // What follows is said of the server itself. Written out: serde cannot both flatten and refuse unknown keys.
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Texts,
    #[serde(default)]
    client: ClientFiles,
    dial_timeout: Option<String>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, Texts>,
}

impl HostsFile {
    fn own(&self) -> HostFile {
        HostFile {
            capabilities: self.capabilities.clone(),
            ca: self.ca.clone(),
            client: self.client.clone(),
            dial_timeout: self.dial_timeout.clone(),
            skip_verify: self.skip_verify,
            override_path: self.override_path,
            header: self.header.clone(),
        }
    }

    /// The mirrors in the order of the file, which the parsed table has lost.
    fn mirrors(&self, text: &str) -> Vec<(&String, &HostFile)> {
        let mut positions: Vec<(usize, &str)> = Vec::new();
        let document = toml::de::DeTable::parse(text).ok();
        let table = document
            .as_ref()
            .and_then(|document| document.get_ref().get("host"));
        if let Some(table) = table.and_then(|value| value.get_ref().as_table()) {
            positions = table
                .iter()
                .map(|(key, _)| (key.span().start, key.get_ref().as_ref()))
                .collect();
        }
        let place = |address: &str| {
            positions
                .iter()
                .find(|(_, key)| *key == address)
                .map_or(usize::MAX, |(position, _)| *position)
        };
        let mut mirrors: Vec<_> = self.host.iter().collect();
        mirrors.sort_by_key(|(address, _)| place(address));
        mirrors
    }
}

/// What can be said of one host.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Texts,
    #[serde(default)]
    client: ClientFiles,
    dial_timeout: Option<String>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, Texts>,
}

/// `credentials.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    #[serde(default)]
    host: BTreeMap<String, Credentials>,
}

/// One text or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn list(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

impl Default for Texts {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// One file, a list of files, or a list of certificates each with its key.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    One(String),
    Many(Vec<Texts>),
}

impl ClientFiles {
    fn one(&self, directory: &Path) -> Result<Option<ClientCertificate>, String> {
        let files = match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Many(all) => match &all[..] {
                [] => return Ok(None),
                [one] => one.list(),
                _ => {
                    return Err(
                        "it names several client certificates, and one can be shown: keep that one"
                            .to_owned(),
                    );
                }
            },
        };
        let (certificate, key) = match files {
            [certificate] => (certificate, None),
            // containerd's way of saying that the key is in the same file.
            [certificate, key] => (certificate, Some(key).filter(|key| !key.is_empty())),
            _ => return Err("`client` wants the file of a certificate and the file of its key".to_owned()),
        };
        Ok(Some(ClientCertificate {
            certificate: directory.join(certificate),
            key: key.map(|key| directory.join(key)),
        }))
    }
}

impl Default for ClientFiles {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// A time as Go writes it: `5s`, `1m30s`, `1.5h`. `None` for what is none, and for no time at all.
fn go_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after
            .find(|character: char| character.is_ascii_digit() || character == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    Some(total).filter(|total| !total.is_zero())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading", path, error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Error::io("reading", path, error))?;
    Ok(Some(text))
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| Error::Configuration {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })
}

/// Reads an address; without a scheme it is https.
fn address_url(address: &str) -> Result<Url, String> {
    let with_scheme = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let url = Url::parse(&with_scheme).map_err(|error| format!("`{address}` is not an address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("`{address}` is not an http or https address"));
    }
    Ok(url)
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether a registry is on this machine, where eavesdropping needs root anyway. Port 443 means TLS.
fn is_loopback(registry: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{registry}")) else {
        return false;
    };
    if url.port() == Some(443) {
        return false;
    }
    let host = url.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
