//! `tram snapshots ls|show|verify|delete`: instances that were kept, with their disks alone or their processes too.

use std::time::Duration;

use serde_json::{Value, json};
use tram_types::units::{GIB, time_to_move};

use crate::{
    age::age,
    client::Client,
    error::Error,
    printer::pairs,
    resolve::{self, INSTANCE_SNAPSHOT},
    session::Session,
    view::{acted, short, take, text, texts},
};

/// What a server takes to verify a snapshot beside reading it, on a machine in trouble.
const VERIFY_BASE: Duration = Duration::from_secs(30);
/// Reading less than this is over before somebody wonders.
const NOTED_BYTES_MIN: u64 = GIB;

/// What to do with snapshots.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the snapshots
    #[command(visible_alias = "list")]
    Ls,
    /// Show one snapshot
    #[command(visible_alias = "get")]
    Show(Target),
    /// Read all of a snapshot and compare it with the checksums of when it was taken
    ///
    /// One that is damaged is not used any more, and the command fails.
    Verify(Target),
    /// Delete a snapshot
    ///
    /// Refused while a service starts from it, since that would not start again.
    Delete {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Delete it once nothing starts from it; nothing new starts from it meanwhile
        #[arg(long)]
        when_unused: bool,
    },
}

/// Which snapshot.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name (the newest of that name), its id, or at least eight characters of its id
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    match action {
        Action::Ls => ls(&session, &client).await,
        Action::Verify(target) => verify(&session, &client, &target.snapshot).await,
        Action::Show(target) => show(&session, &client, &target.snapshot).await,
        Action::Delete { target, when_unused } => {
            let id = resolve::id(&client, INSTANCE_SNAPSHOT, &target.snapshot).await?;
            let query = if when_unused { "?when_unused=true" } else { "" };
            client
                .delete(&format!("/v1/instance_snapshots/{id}{query}"))
                .await?;
            session.printer.done(
                &acted("delete", &id, &target.snapshot),
                format_args!("deleting snapshot `{}`", target.snapshot),
            )
        }
    }
}

/// The status without what all of them begin with.
fn status(snapshot: &Value) -> String {
    let status = text(snapshot, "status");
    status
        .strip_prefix("INSTANCE_SNAPSHOT_STATUS_")
        .unwrap_or(status)
        .to_owned()
}

/// The type without what all of them begin with.
fn kind(snapshot: &Value) -> String {
    let kind = text(snapshot, "type");
    kind.strip_prefix("INSTANCE_SNAPSHOT_TYPE_")
        .unwrap_or(kind)
        .to_ascii_lowercase()
}

/// What it takes on the disk; nothing before that is known.
fn size(snapshot: &Value) -> String {
    match text(snapshot, "stored_bytes").parse::<u64>() {
        Ok(bytes) if bytes > 0 => format!("{} MiB", bytes.div_ceil(1 << 20)),
        _ => String::new(),
    }
}

async fn ls(session: &Session, client: &Client) -> Result<(), Error> {
    let snapshots = client
        .list(INSTANCE_SNAPSHOT.path, INSTANCE_SNAPSHOT.member, &[], None)
        .await?;
    let services = resolve::services(client).await?;
    let of = |snapshot: &Value| {
        let id = text(snapshot, "service_id");
        let found = services.iter().find(|service| service.id == id);
        found.map_or_else(|| short(id), |service| service.name.clone())
    };
    session.printer.list(
        &snapshots,
        "snapshots",
        &["NAME", "OF", "TYPE", "SIZE", "STATUS", "AGE", "ID", "MESSAGE"],
        |snapshot| {
            vec![
                text(snapshot, "name").to_owned(),
                of(snapshot),
                kind(snapshot),
                size(snapshot),
                status(snapshot),
                age(text(snapshot, "created_at"), session.now()),
                short(text(snapshot, "id")),
                texts(snapshot, "messages").into_iter().next().unwrap_or_default(),
            ]
        },
    )
}

async fn verify(session: &Session, client: &Client, given: &str) -> Result<(), Error> {
    let id = resolve::id(client, INSTANCE_SNAPSHOT, given).await?;
    let path = format!("/v1/instance_snapshots/{id}");
    let snapshot = take(&mut client.get(&path, &[]).await?, "instance_snapshot");
    let bytes: u64 = text(&snapshot, "stored_bytes").parse().unwrap_or(0);
    if bytes > NOTED_BYTES_MIN {
        session
            .printer
            .note(format_args!("reading {} of `{given}`", size(&snapshot)));
    }
    let reply = client
        // The server gives up after this, and says so.
        .patient(VERIFY_BASE + time_to_move(bytes))
        .post(&format!("{path}/verify"), &json!({}))
        .await?;
    if reply.get("whole").and_then(Value::as_bool) == Some(true) {
        return session
            .printer
            .done(&reply, format_args!("snapshot `{given}` is whole"));
    }
    Err(Error::Exec(format!(
        "snapshot `{given}`: {}",
        text(&reply, "message")
    )))
}

async fn show(session: &Session, client: &Client, given: &str) -> Result<(), Error> {
    let id = resolve::id(client, INSTANCE_SNAPSHOT, given).await?;
    let path = format!("/v1/instance_snapshots/{id}");
    let snapshot = take(&mut client.get(&path, &[]).await?, "instance_snapshot");
    session.printer.value(&snapshot, || {
        pairs(&[
            ("name", text(&snapshot, "name").to_owned()),
            ("id", text(&snapshot, "id").to_owned()),
            ("type", kind(&snapshot)),
            ("size", size(&snapshot)),
            ("status", status(&snapshot)),
            ("service", text(&snapshot, "service_id").to_owned()),
            ("instance", text(&snapshot, "instance_id").to_owned()),
            (
                "created",
                age(text(&snapshot, "created_at"), session.now()) + " ago",
            ),
            ("messages", texts(&snapshot, "messages").join("\n")),
        ])
    })
}
