//! An edge without a control plane, for benchmarks: serves the routing table of a JSON file.
//!
//! `edge_standalone STATE_DIR TABLE.json HTTP_ADDRESS [WORKERS [ACCESS_LOG]]`. The access log is off unless a file is named.
//! Ends on SIGTERM.

use std::error::Error;
use std::net::SocketAddr;

use tram_edge::{AccessLog, Config, Edge};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| {
        arguments
            .next()
            .ok_or_else(|| format!("missing argument: {name}"))
    };
    let state_dir = next("the state directory")?;
    let table = std::fs::read(next("the table's file")?)?;
    let http: SocketAddr = next("the address")?.parse()?;
    let workers = next("workers").map_or(Ok(1), |text| text.parse())?;
    let mut config = Config::loopback(state_dir, 0, 0);
    config.http = vec![http];
    config.https = Vec::new();
    config.workers = workers;
    config.access_log = next("the access log").map_or(AccessLog::Off, |path| AccessLog::File(path.into()));
    let edge = Edge::bind(config)?;
    edge.handle().apply(serde_json::from_slice(&table)?)?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    edge.serve(async move {
        terminate.recv().await;
    })
    .await?;
    Ok(())
}
