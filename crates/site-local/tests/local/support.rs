//! A machine for one test: registry, image, supervisor, site.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tram_image::{ImageStore, Settings};
use tram_sandbox::client::Client;
use tram_site::spec::Limits;
use tram_site::streams::ExecOutput;
use tram_site::{
    EndCause, ExecRequest, ImageSpec, InstancePhase, InstanceSpec, LogQuery, ObservedImage, ObservedInstance,
    Site,
};
use tram_site_local::{Config, Ipv4Network, LocalSite};
use tram_types::effective::{HealthCheck, Port, PortProtocol, Probe};
use tram_types::units::MIB;
use tram_types::{
    AppId, DeploymentId, Generation, InstanceId, OrganizationId, RegionalDeploymentId, ServiceId,
};

/// Nothing here takes so long on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Machine {
    directory: TempDir,
    registry: Child,
    supervisor: Option<Child>,
    images: Option<ImageStore>,
    pub(crate) image: String,
    pub(crate) network: Ipv4Network,
}

impl Machine {
    /// `None` where it cannot be and the tests may do without.
    pub(crate) async fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("instances need root: run `make test`");
            return None;
        }
        for (tool, package) in [
            ("nft", "nftables"),
            ("ip", "iproute2"),
            ("busybox", "busybox-static"),
            ("skopeo", "skopeo"),
            ("docker-registry", "docker-registry"),
            ("tar", "tar"),
        ] {
            if !std::env::split_paths(&std::env::var_os("PATH")?).any(|path| path.join(tool).exists()) {
                skip(&format!("{tool} is missing: run `apt-get install {package}`"));
                return None;
            }
        }
        // Shown with a failed test; more with RUST_LOG.
        let _already = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let directory = tempfile::Builder::new().prefix("tram-local-").tempdir().unwrap();
        let (registry, address) = start_registry(directory.path());
        let image = format!("{address}/test/busybox:1");
        push_image(directory.path(), &image);
        let images = ImageStore::open(directory.path().join("images"), Settings::default()).unwrap();
        // Process ids are unique on a machine, and each test is a process of its own. The range is for tests of
        // networks, so it leads nowhere else; its upper half is the outside's.
        let pid = std::process::id();
        let network = format!("198.18.{}.{}/25", pid / 2 % 256, pid % 2 * 128)
            .parse()
            .unwrap();
        let mut machine = Self {
            directory,
            registry,
            supervisor: None,
            images: Some(images),
            image,
            network,
        };
        machine.start_supervisor();
        Some(machine)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    pub(crate) fn images(&self) -> ImageStore {
        self.images.clone().unwrap()
    }

    /// Whether this machine cannot do something and the tests may do without.
    pub(crate) fn lacks(&self, fact: &str) -> bool {
        let found = tram_sandbox::probe::facts()
            .into_iter()
            .find(|it| it.name == fact);
        let lacks = found.as_ref().is_none_or(|it| !it.ok);
        if lacks {
            skip(&format!("this machine has no {fact}: {found:?}"));
        }
        lacks
    }

    /// Nothing can be pulled any more.
    pub(crate) fn stop_registry(&mut self) {
        self.registry.kill().unwrap();
        self.registry.wait().unwrap();
    }

    /// Lets another process have the image store, or takes it back.
    pub(crate) fn hand_images_over(&mut self, away: bool) {
        self.images = None;
        let deadline = Instant::now() + PATIENCE;
        // The tasks of a site that was just dropped may hold it for a moment more.
        let images = loop {
            match ImageStore::open(self.images_dir(), Settings::default()) {
                Ok(images) => break images,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        };
        self.images = (!away).then_some(images);
    }

    pub(crate) fn start_supervisor(&mut self) {
        let program = example("local-supervisor");
        let log = std::fs::File::create(self.directory.path().join("supervisor.log")).unwrap();
        let child = Command::new(&program)
            .arg(self.state())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.supervisor = Some(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())));
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = Client::new(self.state()).ping() {
            assert!(
                Instant::now() < deadline,
                "the supervisor does not come up: {error}"
            );
            std::thread::yield_now();
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill_supervisor(&mut self) {
        let mut child = self.supervisor.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new(self.state());
        config.network.addresses = self.network;
        config.network.pool = 2;
        config
    }

    pub(crate) async fn open(&self) -> Arc<LocalSite> {
        LocalSite::open(self.config(), self.images.clone().unwrap())
            .await
            .unwrap()
    }

    /// Ends everything through the contract, then looks that nothing is left.
    pub(crate) async fn finish(mut self, site: Arc<LocalSite>) {
        let instances: Vec<InstanceId> = site.observe().await.unwrap().instances.into_keys().collect();
        for id in &instances {
            site.stop(*id, Duration::ZERO, NEWEST).await.unwrap();
        }
        for id in &instances {
            ended(&site, *id).await;
            site.forget(*id, NEWEST).await.unwrap();
            site.remove_logs(*id).await.unwrap();
        }
        site.close().await.unwrap();
        drop(site);
        assert_eq!(self.leftovers(), Vec::<String>::new());
        self.kill_supervisor();
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found = leftovers(&self.state());
        let output = |arguments: &[&str]| {
            String::from_utf8(Command::new("ip").args(arguments).output().unwrap().stdout).unwrap()
        };
        let gateway = format!("{}/32", self.network.gateway());
        if output(&["-o", "address", "show", "dev", "lo"]).contains(&gateway) {
            found.push(format!("address {gateway}"));
        }
        if output(&["route"]).contains(&format!("unreachable {}", self.network)) {
            found.push(format!("route {}", self.network));
        }
        found
    }

    pub(crate) fn spec(&self, app: &str, service: &str) -> InstanceSpec {
        let deployment_id = DeploymentId::random();
        InstanceSpec {
            id: InstanceId::random(),
            organization_id: OrganizationId::random(),
            app_id: AppId::random(),
            app_name: app.to_owned(),
            service_id: ServiceId::random(),
            service_name: service.to_owned(),
            deployment_id,
            regional_deployment_id: RegionalDeploymentId::random(),
            replica_index: 0,
            image: ImageSpec {
                reference: self.image.clone(),
                credentials: None,
                model: None,
                adapters: Vec::new(),
                draft: None,
                keeps: false,
                deployment: deployment_id,
            },
            entrypoint: Vec::new(),
            command: String::new(),
            args: Vec::new(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            files: Vec::new(),
            ports: vec![Port {
                port: 8000,
                protocol: PortProtocol::Http,
            }],
            health_checks: vec![tcp_check(8000)],
            isolation: Default::default(),
            devices: None,
            volumes: Vec::new(),
            limits: Limits {
                cpu_millis: 1000,
                memory_bytes: 64 * MIB,
                disk_bytes: 256 * MIB,
            },
            mesh: true,
            egress_allow: None,
            bound_secrets: Vec::new(),
            untrusted: false,
            snapshot: None,
            executor: None,
        }
    }

    /// The same with a shell script instead of the image's web server.
    pub(crate) fn script(&self, script: &str) -> InstanceSpec {
        let mut spec = self.spec("app", "script");
        spec.entrypoint = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        spec.command = script.to_owned();
        spec.ports.clear();
        spec.health_checks.clear();
        spec
    }
}

impl Drop for Machine {
    /// What a failed test leaves would disturb the next.
    fn drop(&mut self) {
        if let Ok(instances) = Client::new(self.state()).list() {
            for info in instances {
                let _ended = Client::new(self.state()).kill(&info.id);
            }
        }
        if let Some(mut child) = self.supervisor.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
        let _gone = self.registry.kill();
        let _gone = self.registry.wait();
        for left in self.leftovers() {
            let command: Vec<&str> = left.split_whitespace().collect();
            let _gone = match command.as_slice() {
                ["interface", name] => Command::new("ip").args(["link", "delete", name]).status(),
                ["namespace", path] => Command::new("umount").arg(path).status(),
                ["table", name] => Command::new("nft")
                    .args(["delete", "table", "inet", name])
                    .status(),
                ["address", address] => Command::new("ip")
                    .args(["address", "delete", address, "dev", "lo"])
                    .status(),
                ["route", network] => Command::new("ip")
                    .args(["route", "delete", "unreachable", network])
                    .status(),
                _ => continue,
            };
        }
    }
}

/// What the site of this state directory has on the machine: interfaces, namespaces, table, addresses, files.
pub(crate) fn leftovers(state: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let root = state.join("local");
    let Ok(root) = root.canonicalize() else {
        return found;
    };
    for entry in std::fs::read_dir(root.join("netns")).unwrap() {
        found.push(format!("namespace {}", entry.unwrap().path().display()));
    }
    for part in ["instances", "kept"] {
        for entry in std::fs::read_dir(root.join(part)).unwrap() {
            found.push(format!("file {}", entry.unwrap().path().display()));
        }
    }
    for entry in std::fs::read_dir(state.join("instances")).unwrap() {
        found.push(format!("file {}", entry.unwrap().path().display()));
    }
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    let hash = format!("{:06x}", (hash >> 24) ^ (hash & 0x00ff_ffff));
    for entry in std::fs::read_dir("/sys/class/net").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with(&format!("tr{hash}-")) {
            found.push(format!("interface {name}"));
        }
    }
    let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
    let table = format!("tram_{hash}");
    if String::from_utf8(tables.stdout)
        .unwrap()
        .lines()
        .any(|line| line.ends_with(&table))
    {
        found.push(format!("table {table}"));
    }
    found
}

/// Says why a test cannot run here. That fails it, unless whoever runs the tests said that they may do without.
#[track_caller]
fn skip(why: &str) {
    assert!(
        std::env::var_os("TRAM_TESTS_MAY_SKIP").is_some(),
        "{why} (or set TRAM_TESTS_MAY_SKIP=1)"
    );
    println!("skipped: {why}");
}

/// A program beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.pop();
    program.push("examples");
    program.push(name);
    program
}

fn start_registry(directory: &Path) -> (Child, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = directory.join("registry.yml");
    let data = directory.join("registry");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "the registry does not come up");
        std::thread::yield_now();
    }
    (child, address)
}

/// An image of one layer: busybox, a user, a web page.
fn push_image(directory: &Path, name: &str) {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let root = directory.join("rootfs");
    for path in ["bin", "etc", "www", "tmp", "home/app"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for tool in [
        "sh", "httpd", "wget", "nc", "cat", "echo", "sleep", "ping", "nslookup", "head", "ls", "env", "dd",
        "tail", "grep", "hostname", "id", "kill", "true", "ip", "sed", "timeout",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    // The static busybox cannot look names up (its C library loads a part of that); bash can, with its libraries.
    let libraries = run(Command::new("ldd").arg("/bin/bash"));
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .chain(["/bin/bash"]);
    for path in paths {
        let inside = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        std::fs::copy(path, inside).unwrap();
    }
    std::fs::write(root.join("www/index.html"), "it works\n").unwrap();
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
    let image = directory.join("image");
    std::fs::create_dir_all(&image).unwrap();
    run(Command::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "-cf"])
        .arg(image.join("layer.tar"))
        .arg("-C")
        .arg(&root)
        .arg("."));
    let sum = run(Command::new("sha256sum").arg(image.join("layer.tar")));
    let diff_id = sum.split_whitespace().next().unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["/bin/httpd","-f","-p","8000","-h","/www"],"User":"app","WorkingDir":"/home/app"}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
    );
    std::fs::write(image.join("config.json"), config).unwrap();
    std::fs::write(
        image.join("manifest.json"),
        r#"[{"Config":"config.json","RepoTags":[],"Layers":["layer.tar"]}]"#,
    )
    .unwrap();
    let archive = directory.join("image.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&image)
        .args(["manifest.json", "config.json", "layer.tar"]));
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("docker-archive:{}", archive.display()))
        .arg(format!("docker://{name}")));
}

/// Newer than every order of a test.
pub(crate) const NEWEST: Generation = Generation(1000);

pub(crate) fn tcp_check(port: u16) -> HealthCheck {
    HealthCheck {
        grace_period: Duration::from_secs(5),
        interval: Duration::from_secs(3),
        restart_limit: 3,
        timeout: Duration::from_secs(2),
        probe: Probe::Tcp { port },
    }
}

/// Waits until the instance is seen as wanted.
pub(crate) async fn until(
    site: &LocalSite,
    id: InstanceId,
    wanted: impl Fn(&ObservedInstance) -> bool,
) -> ObservedInstance {
    let mut changed = site.changed();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut last = None;
    loop {
        if let Some(seen) = site.observe_instance(id).await.unwrap() {
            if wanted(&seen) {
                return seen;
            }
            last = Some(seen);
        }
        let news = tokio::time::timeout_at(deadline, changed.recv()).await;
        assert!(news.is_ok(), "not seen in time; last: {last:?}");
    }
}

pub(crate) async fn healthy(site: &LocalSite, id: InstanceId) -> IpAddr {
    let seen = until(site, id, |seen| seen.phase.is_healthy() || seen.phase.is_ended()).await;
    assert!(seen.phase.is_healthy(), "{seen:?}");
    seen.address.unwrap()
}

pub(crate) async fn ended(site: &LocalSite, id: InstanceId) -> EndCause {
    match until(site, id, |seen| seen.phase.is_ended()).await.phase {
        InstancePhase::Ended { cause, .. } => cause,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn start(site: &LocalSite, spec: &InstanceSpec) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut changed = site.changed();
    loop {
        match site.ensure_image(&spec.image).await.unwrap() {
            ObservedImage::Ready { .. } => break,
            ObservedImage::Failed { message, .. } => panic!("{message}"),
            ObservedImage::Pulling { .. } => {
                let news = tokio::time::timeout_at(deadline, changed.recv()).await;
                assert!(news.is_ok(), "the image is not ready in time");
            }
        }
    }
    site.start(spec, Generation(1)).await.unwrap();
}

/// Starts and waits until healthy.
pub(crate) async fn up(site: &LocalSite, spec: &InstanceSpec) -> IpAddr {
    start(site, spec).await;
    healthy(site, spec.id).await
}

/// What a web server in an instance answers to this machine.
pub(crate) async fn get(address: IpAddr) -> String {
    let mut stream = TcpStream::connect((address, 8000)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Runs a shell line in an instance: its output, both streams, and its exit code.
pub(crate) async fn shell(site: &LocalSite, id: InstanceId, line: &str) -> (String, i32) {
    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()],
        ..ExecRequest::default()
    };
    let mut session = site.exec(id, &request).await.unwrap();
    let mut output = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, session.output.recv())
            .await
            .expect("a command that ends")
        {
            Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => output.extend_from_slice(&bytes),
            Some(ExecOutput::Exited { code }) => return (String::from_utf8(output).unwrap(), code),
            None => panic!(
                "the session ended without an exit code: {}",
                String::from_utf8_lossy(&output)
            ),
        }
    }
}

/// The last line of the web page at `host`, or what went wrong, as seen from inside.
pub(crate) async fn fetch(site: &LocalSite, from: &InstanceSpec, host: &str) -> String {
    let ask = format!(r#"exec 3<>/dev/tcp/{host}/8000 && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3"#);
    shell(
        site,
        from.id,
        &format!("timeout 20 bash -c '{ask}' 2>&1 | tail -n 1"),
    )
    .await
    .0
}

pub(crate) async fn log_lines(site: &LocalSite, id: InstanceId) -> Vec<String> {
    let query = LogQuery {
        limit: 1000,
        ..LogQuery::default()
    };
    let page = site.logs(id, &query).await.unwrap();
    page.entries
        .into_iter()
        .map(|entry| format!("{}: {}", entry.stream.as_str(), entry.message))
        .collect()
}
