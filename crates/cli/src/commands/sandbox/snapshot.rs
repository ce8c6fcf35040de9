//! `tram sandbox snapshot NAME`: a sandbox as it is now, kept for others to start from: its disk, and if wanted its
//! processes and their memory.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    client::Client,
    error::Error,
    resolve::Service,
    session::Session,
    view::{take, text, texts},
};

/// How often a snapshot is looked at: small disks are kept in some tens of milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How seldom one that takes long is looked at.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// How often who waits is told that something is going on.
const NEWS_INTERVAL: Duration = Duration::from_secs(10);
/// What the server shows of an instance whose disk can be kept.
const KEPT: [&str; 3] = ["HEALTHY", "UNHEALTHY", "SLEEPING"];

/// Arguments of `snapshot`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The sandbox, by its name or its id
    #[arg(value_name = "SANDBOX")]
    pub target: String,
    /// The snapshot's name; without it one is made of the sandbox's
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Keep processes and memory too: what is created from it goes on from this moment
    #[arg(long)]
    pub memory: bool,
    /// Wait no longer than this for it to be taken; without this, for as long as the server is at it
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub timeout: Option<Duration>,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let sandbox = super::find(&client, &arguments.target).await?;
    let name = arguments.name.unwrap_or_else(|| derived_name(&sandbox.name));
    let snapshot = take_of(
        &client,
        &sandbox,
        &name,
        Holding::of(arguments.memory),
        arguments.timeout,
    )
    .await?;
    session.printer.value(&snapshot, || name.clone())
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Holding {
    /// The disk.
    Disk,
    /// The disk, and processes with their memory.
    Processes,
}

impl Holding {
    pub(super) fn of(memory: bool) -> Self {
        if memory { Self::Processes } else { Self::Disk }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Disk => "the disk",
            Self::Processes => "the memory",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Disk => "INSTANCE_SNAPSHOT_TYPE_FILESYSTEM",
            Self::Processes => "INSTANCE_SNAPSHOT_TYPE_FULL",
        }
    }
}

/// A name that is made of a sandbox's and is not taken, short enough for sandboxes and snapshots.
pub(in crate::commands) fn derived_name(of: &str) -> String {
    /// Names of services have at most 63 characters; the rest is for what makes this one unique.
    const KEPT_CHARACTERS: usize = 48;
    let random = uuid::Uuid::new_v4().simple().to_string();
    let of: String = of.chars().take(KEPT_CHARACTERS).collect();
    format!(
        "{}-{}",
        of.trim_end_matches('-'),
        random.get(..8).unwrap_or_default()
    )
}

/// Takes a snapshot of the sandbox and waits until it can be used; one that cannot be taken is an error and leaves
/// nothing.
pub(super) async fn take_of(
    client: &Client,
    sandbox: &Service,
    name: &str,
    holding: Holding,
    patience: Option<Duration>,
) -> Result<Value, Error> {
    let instances = client
        .list("/v1/instances", "instances", &[("service_id", &sandbox.id)], None)
        .await?;
    let Some(instance) = instances
        .iter()
        .find(|instance| KEPT.contains(&text(instance, "status")))
    else {
        return Err(Error::input(
            format!(
                "sandbox `{}` is {}: it has no disk now",
                sandbox.name,
                text(&sandbox.value, "status")
            ),
            "wake it by a request, or wait until it has started",
        ));
    };
    let body = json!({
        "instance_id": text(instance, "id"),
        "name": name,
        "type": holding.kind(),
    });
    let mut reply = client.post("/v1/instance_snapshots", &body).await?;
    let mut snapshot = take(&mut reply, "instance_snapshot");
    let path = format!("/v1/instance_snapshots/{}", text(&snapshot, "id"));
    let begun = Instant::now();
    let mut told = begun;
    loop {
        let waited = begun.elapsed();
        match text(&snapshot, "status") {
            status if status.ends_with("AVAILABLE") => return Ok(snapshot),
            // The server ends it, one way or the other.
            status if status.ends_with("CREATING") && patience.is_none_or(|patience| waited < patience) => {}
            status => {
                let messages = texts(&snapshot, "messages").join("; ");
                let error = Error::Exec(if status.ends_with("CREATING") {
                    format!(
                        "the snapshot is not taken after {} s, and is given up (`--timeout`)",
                        waited.as_secs()
                    )
                } else {
                    format!("the snapshot cannot be used, it is {status}: {messages}")
                });
                // What went wrong is the news, whether or not its record can be removed now.
                let _ = client.delete(&path).await;
                return Err(error);
            }
        }
        if told.elapsed() >= NEWS_INTERVAL {
            told = Instant::now();
            client.printer().note(format_args!(
                "{} of `{}` is being written down, for {} s so far",
                holding.words(),
                sandbox.name,
                waited.as_secs()
            ));
        }
        // Seldom enough for what takes long, and never late by more than a fiftieth.
        sleep((waited / 50).clamp(POLL_INTERVAL, POLL_INTERVAL_MAX)).await;
        snapshot = take(&mut client.get(&path, &[]).await?, "instance_snapshot");
    }
}
