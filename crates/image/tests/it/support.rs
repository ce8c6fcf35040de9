//! Debian's `docker-registry`, a scripted server for faults, and images made by hand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tram_image::{
    Digest, ImageStore, Limits, Progress, PullPolicy, PullRequest, RegistryConfig, Settings, Timeouts,
};

/// Says why a test cannot run here. That fails it, unless whoever runs the tests said that they may do without.
#[track_caller]
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("TRAM_TESTS_MAY_SKIP").is_some(),
        "{why} (or set TRAM_TESTS_MAY_SKIP=1)"
    );
    println!("skipped: {why}");
}

/// Tests that chown, make whiteouts and set trusted attributes need root.
#[track_caller]
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(&format!("{test}: unpacking layers needs root: run `make test`"));
    }
    root
}

/// Limits that a busy machine keeps to.
pub(crate) fn settings() -> Settings {
    with_timeout(Duration::from_secs(20))
}

/// Short ones, so that what hangs is told soon.
pub(crate) fn impatient(directory: &TempDir) -> ImageStore {
    ImageStore::open(directory.path(), with_timeout(Duration::from_secs(2))).expect("the store opens")
}

fn with_timeout(each: Duration) -> Settings {
    Settings {
        timeouts: Timeouts {
            connect: each,
            response: each,
            stall: each,
        },
        ..Settings::default()
    }
}

pub(crate) fn store(directory: &TempDir) -> ImageStore {
    ImageStore::open(directory.path(), settings()).expect("the store opens")
}

pub(crate) fn store_with(directory: &TempDir, registries: RegistryConfig) -> ImageStore {
    ImageStore::open(
        directory.path(),
        Settings {
            registries,
            ..settings()
        },
    )
    .expect("the store opens")
}

pub(crate) fn small_limits(bytes: u64, entries: u64) -> Settings {
    let limits = Limits {
        image_unpacked_bytes: bytes,
        image_entries: entries,
        ..Limits::default()
    };
    Settings { limits, ..settings() }
}

pub(crate) fn request(reference: &str, policy: PullPolicy) -> PullRequest {
    PullRequest::new(reference.parse().expect("a valid name")).policy(policy)
}

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &str,
) -> Result<tram_image::Image, tram_image::Error> {
    store
        .ensure(&request(reference, PullPolicy::Always), &Progress::channel().0)
        .await
}

// ---- a real registry -------------------------------------------------------------------------------------

/// `docker-registry` on a free port, with its data in a temporary directory.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

/// bcrypt of `secret`.
const READER: &str = "reader:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

impl Registry {
    /// `None` when the program is not installed and the tests may do without.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Wants `reader` / `secret`.
    pub(crate) fn start_private() -> Option<Self> {
        Self::start_with("auth:\n  htpasswd:\n    realm: test\n    path: HTPASSWD\n")
    }

    fn start_with(auth: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let passwords = directory.path().join("htpasswd");
        std::fs::write(&passwords, READER).unwrap();
        let auth = auth.replace("HTPASSWD", passwords.to_str().unwrap());
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{auth}",
            directory.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                skip(&format!(
                    "docker-registry cannot be started: {error}: run `apt-get install docker-registry`"
                ));
                return None;
            }
        };
        // It says where it listens in its log, and must not block on a full pipe later.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut address = None;
        let mut line = String::new();
        while address.is_none() && log.read_line(&mut line).unwrap() > 0 {
            address = line.split("listening on ").nth(1).and_then(|rest| {
                rest.split(['"', ' ', ','])
                    .next()
                    .and_then(|text| text.trim().parse::<SocketAddr>().ok())
            });
            line.clear();
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let address = address.expect("docker-registry says where it listens");
        Some(Self {
            child,
            address,
            _directory: directory,
        })
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Pushes an image as Docker does: blobs, then the manifest.
    pub(crate) async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.push_as(repository, tag, image, None).await;
    }

    pub(crate) async fn push_as(
        &self,
        repository: &str,
        tag: &str,
        image: &TestImage,
        user: Option<(&str, &str)>,
    ) {
        let client = http();
        let authorised = |request: reqwest::RequestBuilder| match user {
            Some((name, password)) => request.basic_auth(name, Some(password)),
            None => request,
        };
        for blob in image.blobs.values() {
            let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
            let started = authorised(client.post(start)).send().await.unwrap();
            assert_eq!(started.status(), 202);
            let place = started.headers()["location"].to_str().unwrap().to_owned();
            let place = if place.starts_with('/') {
                format!("http://{}{place}", self.address)
            } else {
                place
            };
            let joiner = if place.contains('?') { '&' } else { '?' };
            let place = format!("{place}{joiner}digest={}", Digest::of(blob));
            let put = authorised(client.put(place))
                .body(blob.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(put.status(), 201, "{:?}", put.text().await);
        }
        for (name, (media_type, bytes)) in image.manifests(tag) {
            let place = format!("http://{}/v2/{repository}/manifests/{name}", self.address);
            let put = authorised(client.put(place))
                .header("content-type", media_type)
                .body(bytes);
            let put = put.send().await.unwrap();
            assert_eq!(put.status(), 201, "{:?}", put.text().await);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().build().unwrap()
}

// ---- images ----------------------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

/// An image, or an index of images, with everything a registry needs of it.
#[derive(Clone, Default)]
pub(crate) struct TestImage {
    pub(crate) blobs: HashMap<Digest, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: String,
    /// Manifests that an index names.
    pub(crate) children: Vec<(String, Vec<u8>)>,
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

impl TestImage {
    /// Layers are archives with the way to compress them, bottom first.
    pub(crate) fn new(layers: &[(Vec<u8>, Compression)]) -> Self {
        Self::build(layers, "amd64", "{}", false)
    }

    pub(crate) fn docker(layers: &[(Vec<u8>, Compression)]) -> Self {
        Self::build(layers, "amd64", "{}", true)
    }

    pub(crate) fn build(
        layers: &[(Vec<u8>, Compression)],
        architecture: &str,
        config: &str,
        docker: bool,
    ) -> Self {
        let architecture = if architecture == "amd64" {
            host_architecture()
        } else {
            architecture
        };
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|(archive, _)| format!("\"{}\"", Digest::of(archive)))
            .collect();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let mut image = Self::default();
        let (manifest_type, config_type) = if docker {
            (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json")
        } else {
            (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json")
        };
        let mut descriptors = Vec::new();
        for (archive, compression) in layers {
            let blob = compress(archive, *compression);
            let media_type = match (docker, compression) {
                (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                (false, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
                (false, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
                (false, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            };
            descriptors.push(descriptor(media_type, &blob));
            image.blobs.insert(Digest::of(&blob), blob);
        }
        image.manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{manifest_type}","config":{},"layers":[{}]}}"#,
            descriptor(config_type, config.as_bytes()),
            descriptors.join(",")
        )
        .into_bytes();
        image.media_type = manifest_type.to_owned();
        image
            .blobs
            .insert(Digest::of(config.as_bytes()), config.into_bytes());
        image
    }

    /// An index of one image for each architecture.
    pub(crate) fn index(images: &[(&str, &Self)], docker: bool) -> Self {
        let mut index = Self {
            media_type: if docker { DOCKER_LIST } else { OCI_INDEX }.to_owned(),
            ..Self::default()
        };
        let mut entries = Vec::new();
        for (architecture, image) in images {
            let architecture = if *architecture == "amd64" {
                host_architecture()
            } else {
                architecture
            };
            let entry = descriptor(&image.media_type, &image.manifest);
            let platform = format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}}}"#);
            entries.push(format!("{}{platform}", entry.trim_end_matches('}')));
            index.blobs.extend(image.blobs.clone());
            index
                .children
                .push((image.media_type.clone(), image.manifest.clone()));
        }
        index.manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
            index.media_type,
            entries.join(",")
        )
        .into_bytes();
        index
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Name (tag or digest), media type and bytes of every manifest, children first.
    pub(crate) fn manifests(&self, tag: &str) -> Vec<(String, (String, Vec<u8>))> {
        let named = |(media_type, bytes): &(String, Vec<u8>)| {
            (Digest::of(bytes).to_string(), (media_type.clone(), bytes.clone()))
        };
        let mut all: Vec<_> = self.children.iter().map(named).collect();
        all.push((tag.to_owned(), (self.media_type.clone(), self.manifest.clone())));
        all
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#,
        Digest::of(bytes),
        bytes.len()
    )
}

pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Builds an archive entry by entry.
#[derive(Default)]
pub(crate) struct Archive {
    builder: Option<tar::Builder<Vec<u8>>>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            builder: Some(tar::Builder::new(Vec::new())),
        }
    }

    pub(crate) fn file(self, path: &str, contents: &[u8]) -> Self {
        self.entry(path, tar::EntryType::Regular, 0o644, "", contents)
    }

    pub(crate) fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, tar::EntryType::Directory, mode, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Symlink, 0o777, target, b"")
    }

    /// Writes names as they are given, `..` and all.
    pub(crate) fn entry(
        mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        link: &str,
        contents: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        let raw = header.as_old_mut();
        assert!(path.len() <= 100 && link.len() <= 100, "use a long name entry");
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.builder.as_mut().unwrap().append(&header, contents).unwrap();
        self
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        self.builder.take().unwrap().into_inner().unwrap()
    }
}

// ---- a scripted server -----------------------------------------------------------------------------------

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

impl Request {
    /// The first byte of a range that is asked for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split('-')
            .next()?
            .parse()
            .ok()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this much of the body.
    pub(crate) cut_after: Option<usize>,
    /// Send the head and this much of the body, then nothing more, and keep the connection.
    pub(crate) hang_after: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server whose every answer is decided by a closure. Ends with the value.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, requests) = (Arc::new(answer), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&answer), Arc::clone(&requests)));
            }
        });
        Self { address, seen, task }
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn serve<F: Fn(&Request) -> Reply>(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<F>,
    seen: Arc<Mutex<Vec<Request>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let request = Request {
        method: first.next().unwrap_or_default().to_owned(),
        path: first.next().unwrap_or_default().to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
    };
    let reply = answer(&request);
    seen.lock().unwrap().push(request.clone());
    let mut out = format!(
        "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    if stream.write_all(out.as_bytes()).await.is_err() || request.method == "HEAD" {
        return;
    }
    let end = reply
        .cut_after
        .or(reply.hang_after)
        .unwrap_or(reply.body.len())
        .min(reply.body.len());
    let _ = stream.write_all(&reply.body[..end]).await;
    let _ = stream.flush().await;
    let _ = if reply.hang_after.is_none() {
        stream.shutdown().await
    } else {
        Ok(())
    };
    if reply.hang_after.is_some() {
        // Until the client gives up.
        let _ = stream.read_u8().await;
    }
}

/// A registry in memory that answers as the protocol wants; tests bend its answers.
pub(crate) fn registry_reply(image: &TestImage, request: &Request) -> Reply {
    let name = request
        .path
        .split('?')
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    if request.path.contains("/manifests/") {
        let found = image
            .manifests("latest")
            .into_iter()
            .find(|(tag, (_, bytes))| *tag == name || Digest::of(bytes).to_string() == name);
        return match found {
            Some((_, (media_type, bytes))) => {
                let digest = Digest::of(&bytes).to_string();
                Reply::new(200, bytes)
                    .header("content-type", &media_type)
                    .header("docker-content-digest", &digest)
            }
            None => Reply::new(
                404,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            ),
        };
    }
    let blob = name
        .parse::<Digest>()
        .ok()
        .and_then(|digest| image.blobs.get(&digest));
    match (blob, request.range_start()) {
        (None, _) => Reply::new(404, "{}"),
        (Some(blob), None) => Reply::new(200, blob.clone()),
        (Some(blob), Some(start)) if start >= blob.len() => Reply::new(416, ""),
        (Some(blob), Some(start)) => Reply::new(206, &blob[start..]).header(
            "content-range",
            &format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
        ),
    }
}
