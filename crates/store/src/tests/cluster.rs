//! A PostgreSQL of our own for the length of a test: in a temporary directory, on a socket in it, without fsync.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use sqlx::{AnyConnection, Connection as _};
use tokio::time::Instant;

/// Where Debian puts each version's programs.
const DEBIAN: &str = "/usr/lib/postgresql";
/// How long a start may take on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at whether it is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// PostgreSQL refuses to run as root; Debian's package brings this user.
const USER: &str = "postgres";

pub(super) struct Cluster {
    server: Child,
    directory: tempfile::TempDir,
    /// Set where it listens on TCP too, with TLS alone.
    tls_port: Option<u16>,
}

/// A certificate and its key, as PEM.
pub(super) struct Certificate {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Cluster {
    /// `None` when the tests were told to do without.
    pub(super) async fn start() -> Option<Self> {
        Self::launch(None).await
    }

    /// One that is also reached at `127.0.0.1`, and there by nobody without TLS.
    pub(super) async fn start_with_tls(certificate: &Certificate) -> Option<Self> {
        Self::launch(Some(certificate)).await
    }

    async fn launch(certificate: Option<&Certificate>) -> Option<Self> {
        if std::env::var_os("TRAM_SKIP_POSTGRES").is_some() {
            println!("skipped: TRAM_SKIP_POSTGRES is set");
            return None;
        }
        let programs = programs().expect(
            "PostgreSQL is needed for this test: run `apt-get install postgresql`, or set TRAM_SKIP_POSTGRES=1",
        );
        let directory = tempfile::Builder::new().prefix("tram-pg-").tempdir().unwrap();
        let identity = identity();
        if let Some((user, group)) = identity {
            chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        let data = directory.path().join("data");
        let made = command(&programs.join("initdb"), identity)
            .args([
                "--no-sync",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--username=postgres",
            ])
            .arg("--pgdata")
            .arg(&data)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut server = command(&programs.join("postgres"), identity);
        let tls_port = certificate.map(|certificate| {
            for (name, content) in [
                ("server.crt", certificate.certificate.as_str()),
                ("server.key", certificate.key.as_str()),
                (
                    "pg_hba.conf",
                    "local all all trust\nhostssl all all 127.0.0.1/32 trust\n",
                ),
            ] {
                write(&data.join(name), content, identity);
            }
            let port = free_port();
            server.args(["-c", "ssl=on", "-c", "listen_addresses=127.0.0.1", "-c"]);
            server.arg(format!("port={port}"));
            port
        });
        if tls_port.is_none() {
            server.args(["-c", "listen_addresses="]);
        }
        let server = server
            .arg("-D")
            .arg(&data)
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .args(["-c", "max_connections=200", "-c", "shared_buffers=16MB"])
            .arg("-k")
            .arg(directory.path())
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Self {
            server,
            directory,
            tls_port,
        };
        sqlx::any::install_default_drivers();
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match AnyConnection::connect(&cluster.url("postgres")).await {
                Ok(connection) => {
                    connection.close().await.unwrap();
                    return Some(cluster);
                }
                Err(error) => assert!(Instant::now() < deadline, "PostgreSQL did not start: {error}"),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn url(&self, database: &str) -> String {
        let port = self.tls_port.map(|port| format!("&port={port}"));
        format!(
            "postgres://postgres@localhost/{database}?host={}{}",
            self.directory.path().display(),
            port.unwrap_or_default()
        )
    }

    /// Its address on TCP, with `options` of the URL.
    pub(super) fn tcp_url(&self, options: &str) -> String {
        let port = self.tls_port.unwrap();
        format!("postgres://postgres@127.0.0.1:{port}/postgres?{options}")
    }

    pub(super) async fn new_database(&self, name: &str) -> String {
        // Names of PostgreSQL are cut off at 63 bytes.
        let name: String = name.chars().take(60).collect();
        let mut connection = AnyConnection::connect(&self.url("postgres")).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        self.url(&name)
    }

    pub(super) async fn stop(self) {
        drop(self);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGQUIT is PostgreSQL's immediate shutdown: it takes its children with it.
        if let Some(pid) = i32::try_from(self.server.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = self.server.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A file that PostgreSQL accepts as its own.
fn write(path: &Path, content: &str, identity: Option<(u32, u32)>) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if let Some((user, group)) = identity {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(DEBIAN)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|programs| programs.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop()
}

/// Whom to become, when root.
fn identity() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.starts_with(&format!("{USER}:")))
        .expect("root needs the user `postgres` of Debian's package to run PostgreSQL");
    let mut members = line.split(':').skip(2);
    let mut next = || members.next().unwrap().parse::<u32>().unwrap();
    Some((next(), next()))
}

/// A program as that user, which is ended when the test is, however the test ends.
fn command(program: &Path, identity: Option<(u32, u32)>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if let Some((user, group)) = identity {
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={group}"))
            .arg("--clear-groups");
    }
    command.arg(program);
    command
}
