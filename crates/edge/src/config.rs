//! What an edge needs to know before it binds. The composition root fills it in; nothing here reads the
//! environment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How long open requests may take to finish once the edge was told to stop. Shorter than the 90 seconds
/// that systemd waits before it kills.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// Settings of one edge.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds the control socket, the last routing table, `certs/` and `ca/`. Made when absent, mode 0700.
    pub state_dir: PathBuf,
    /// The local authority signs for names under it alone, and for `localhost`.
    pub base_domain: String,
    /// Where to accept cleartext HTTP. Port 0 lets the kernel choose.
    pub http: Vec<SocketAddr>,
    /// Where to accept TLS.
    pub https: Vec<SocketAddr>,
    /// On which addresses the public TCP ports of the routing table are opened.
    pub tcp: Vec<IpAddr>,
    /// Where to answer `GET /metrics`; none: only over the control socket.
    pub metrics: Option<SocketAddr>,
    /// Threads that carry traffic; zero: one for each processor.
    pub workers: usize,
    /// Where finished requests are written.
    pub access_log: AccessLog,
    /// Whether each request becomes a span of the process's global OpenTelemetry tracer provider.
    pub traces: bool,
    /// See [`DEFAULT_DRAIN`].
    pub drain: Duration,
}

/// Where finished requests are written, one line of JSON each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to. Full at 64 MiB it is set aside as `.1`, and the one before that as `.2`, up to `.4`.
    File(PathBuf),
}

impl Config {
    /// Both loopback addresses, since `*.localhost` resolves to `::1` first.
    #[must_use]
    pub fn loopback(state_dir: impl Into<PathBuf>, http_port: u16, https_port: u16) -> Self {
        let on = |port| {
            vec![
                SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
            ]
        };
        Self {
            state_dir: state_dir.into(),
            base_domain: "localhost".to_owned(),
            http: on(http_port),
            https: on(https_port),
            tcp: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            metrics: None,
            workers: 0,
            access_log: AccessLog::Off,
            traces: false,
            drain: DEFAULT_DRAIN,
        }
    }
}
