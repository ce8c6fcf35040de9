//! `tram volumes create|ls|show|grow|snapshot|snapshots|restore|delete`: what is kept when an instance is gone.

use std::{str::FromStr, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tram_types::definition::DeploymentVolume;

use super::deploy;
use crate::{
    age::age,
    client::Client,
    error::Error,
    printer::pairs,
    resolve::{self, VOLUME, VOLUME_SNAPSHOT},
    session::Session,
    view::{acted, number, short, take, text},
};

/// How often a snapshot is looked at while it is taken.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What to do with volumes.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Make a volume
    ///
    /// A service names it by `tram deploy --volume NAME:/path`, a sandbox by `tram sandbox create --volume NAME:/path`.
    Create {
        /// Its name
        name: String,
        /// How large, in GB
        #[arg(long, value_name = "GB")]
        size: u32,
        /// Where; without it the first region of the server
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
        /// It can only be read
        #[arg(long)]
        read_only: bool,
    },
    /// List the volumes
    #[command(visible_alias = "list")]
    Ls,
    /// Show one volume
    #[command(visible_alias = "get")]
    Show(Target),
    /// Make a volume larger; its service sees it after a redeploy
    Grow {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// How large it is to be, in GB; it cannot shrink
        #[arg(long, value_name = "GB")]
        size: u32,
    },
    /// Keep what a volume holds now
    Snapshot {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// The snapshot's name; without it one is made of the volume's
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Wait no longer than this for it to be taken
        #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = crate::age::parse_span)]
        timeout: Duration,
    },
    /// Snapshots of volumes
    #[command(subcommand)]
    Snapshots(SnapshotsAction),
    /// Make a volume that holds what a snapshot does
    Restore {
        /// The snapshot, by its name or its id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// The new volume's name
        name: String,
        /// How large, in GB; without it as large as the volume that the snapshot was taken of
        #[arg(long, value_name = "GB")]
        size: Option<u32>,
    },
    /// Delete a volume and everything in it
    ///
    /// Refused while a service has it.
    Delete(Target),
}

/// What to do with snapshots of volumes.
#[derive(Debug, clap::Subcommand)]
pub enum SnapshotsAction {
    /// List the snapshots of volumes
    #[command(visible_alias = "list")]
    Ls,
    /// Delete a snapshot of a volume
    Delete {
        /// The snapshot, by its name or its id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
}

/// Which volume.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, its id, or at least eight characters of its id
    #[arg(value_name = "VOLUME")]
    pub volume: String,
}

/// `NAME:/path`: a volume and where it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// By its name or its id.
    pub volume: String,
    /// Absolute.
    pub path: String,
}

impl FromStr for Attachment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((volume, path)) if !volume.is_empty() && path.starts_with('/') => Ok(Self {
                volume: volume.to_owned(),
                path: path.to_owned(),
            }),
            _ => Err("must be a volume and an absolute path, such as data:/var/lib/data".to_owned()),
        }
    }
}

/// Volumes as definitions have them.
pub(super) async fn attached(client: &Client, asked: &[Attachment]) -> Result<Vec<DeploymentVolume>, Error> {
    let mut volumes = Vec::with_capacity(asked.len());
    for one in asked {
        volumes.push(DeploymentVolume {
            id: resolve::id(client, VOLUME, &one.volume).await?,
            path: one.path.clone(),
            ..DeploymentVolume::default()
        });
    }
    Ok(volumes)
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::Create {
            name,
            size,
            region,
            read_only,
        } => {
            let region = match region {
                Some(region) => region,
                None => deploy::default_region(&client).await?,
            };
            let body = json!({ "name": name, "max_size": size, "region": region, "read_only": read_only });
            made(&session, &client, &body).await
        }
        Action::Ls => ls(&session, &client).await,
        Action::Show(target) => show(&session, &client, &target.volume).await,
        Action::Grow { target, size } => {
            let id = resolve::id(&client, VOLUME, &target.volume).await?;
            let mut reply = client
                .post(&format!("/v1/volumes/{id}"), &json!({ "max_size": size }))
                .await?;
            printer.done(
                &take(&mut reply, "volume"),
                format_args!(
                    "volume `{}` has {size} GB; its service sees it after `tram redeploy`",
                    target.volume
                ),
            )
        }
        Action::Snapshot {
            target,
            name,
            timeout,
        } => snapshot(&session, &client, &target.volume, name, timeout).await,
        Action::Snapshots(SnapshotsAction::Ls) => snapshots(&session, &client).await,
        Action::Snapshots(SnapshotsAction::Delete { snapshot }) => {
            let id = resolve::id(&client, VOLUME_SNAPSHOT, &snapshot).await?;
            client.delete(&format!("/v1/snapshots/{id}")).await?;
            printer.done(
                &acted("delete", &id, &snapshot),
                format_args!("deleting snapshot `{snapshot}`"),
            )
        }
        Action::Restore { snapshot, name, size } => {
            let snapshot = resolve::one(&client, VOLUME_SNAPSHOT, &snapshot).await?;
            let body = json!({
                "name": name,
                // None is as large as the snapshot's volume was.
                "max_size": size.unwrap_or_default(),
                "region": text(&snapshot, "region"),
                "snapshot_id": text(&snapshot, "id"),
            });
            made(&session, &client, &body).await
        }
        Action::Delete(target) => {
            let id = resolve::id(&client, VOLUME, &target.volume).await?;
            client.delete(&format!("/v1/volumes/{id}")).await?;
            printer.done(
                &acted("delete", &id, &target.volume),
                format_args!("deleting volume `{}`", target.volume),
            )
        }
    }
}

async fn made(session: &Session, client: &Client, body: &Value) -> Result<(), Error> {
    let volume = take(&mut client.post("/v1/volumes", body).await?, "volume");
    session.printer.note(format_args!(
        "created volume `{}` of {} GB",
        text(&volume, "name"),
        number(&volume, "max_size")
    ));
    session.printer.value(&volume, || text(&volume, "id").to_owned())
}

/// Names of services by id, for what belongs to them.
async fn owner(client: &Client) -> Result<impl Fn(&Value) -> String, Error> {
    let services = resolve::services(client).await?;
    Ok(move |volume: &Value| {
        let id = text(volume, "service_id");
        let found = services.iter().find(|service| service.id == id);
        found.map_or_else(|| short(id), resolve::Service::path)
    })
}

async fn ls(session: &Session, client: &Client) -> Result<(), Error> {
    let volumes = client.list(VOLUME.path, VOLUME.member, &[], None).await?;
    let owner = owner(client).await?;
    session.printer.list(
        &volumes,
        "volumes",
        &["NAME", "STATUS", "SIZE", "USED", "SERVICE", "REGION", "AGE", "ID"],
        |volume| {
            vec![
                text(volume, "name").to_owned(),
                text(volume, "status").to_owned(),
                format!("{} GB", number(volume, "max_size")),
                format!("{} GB", number(volume, "cur_size")),
                owner(volume),
                text(volume, "region").to_owned(),
                age(text(volume, "created_at"), session.now()),
                short(text(volume, "id")),
            ]
        },
    )
}

async fn show(session: &Session, client: &Client, given: &str) -> Result<(), Error> {
    let id = resolve::id(client, VOLUME, given).await?;
    let volume = take(
        &mut client.get(&format!("/v1/volumes/{id}"), &[]).await?,
        "volume",
    );
    let owner = owner(client).await?;
    session.printer.value(&volume, || {
        let is_read_only = volume.get("read_only").and_then(Value::as_bool) == Some(true);
        pairs(&[
            ("name", text(&volume, "name").to_owned()),
            ("id", text(&volume, "id").to_owned()),
            ("status", text(&volume, "status").to_owned()),
            ("size", format!("{} GB", number(&volume, "max_size"))),
            ("used", format!("{} GB", number(&volume, "cur_size"))),
            ("service", owner(&volume)),
            ("region", text(&volume, "region").to_owned()),
            ("read only", if is_read_only { "yes" } else { "" }.to_owned()),
            ("from snapshot", text(&volume, "snapshot_id").to_owned()),
            (
                "created",
                age(text(&volume, "created_at"), session.now()) + " ago",
            ),
        ])
    })
}

async fn snapshot(
    session: &Session,
    client: &Client,
    given: &str,
    name: Option<String>,
    patience: Duration,
) -> Result<(), Error> {
    let volume = resolve::one(client, VOLUME, given).await?;
    let name = name.unwrap_or_else(|| super::sandbox::derived_name(text(&volume, "name")));
    let body = json!({ "parent_volume_id": text(&volume, "id"), "name": name });
    let mut snapshot = take(&mut client.post("/v1/snapshots", &body).await?, "snapshot");
    let path = format!("/v1/snapshots/{}", text(&snapshot, "id"));
    let deadline = Instant::now() + patience;
    loop {
        match text(&snapshot, "status") {
            status if status.ends_with("AVAILABLE") => break,
            status if status.ends_with("CREATING") && Instant::now() < deadline => {}
            status => {
                return Err(Error::Exec(format!(
                    "the snapshot cannot be used, it is {status}: the volume's events say more"
                )));
            }
        }
        sleep(POLL_INTERVAL).await;
        snapshot = take(&mut client.get(&path, &[]).await?, "snapshot");
    }
    session.printer.value(&snapshot, || name.clone())
}

async fn snapshots(session: &Session, client: &Client) -> Result<(), Error> {
    let volumes = client.list(VOLUME.path, VOLUME.member, &[], None).await?;
    let of = |snapshot: &Value| {
        let id = text(snapshot, "parent_volume_id");
        let found = volumes.iter().find(|volume| text(volume, "id") == id);
        found.map_or_else(|| short(id), |volume| text(volume, "name").to_owned())
    };
    let snapshots = client
        .list(VOLUME_SNAPSHOT.path, VOLUME_SNAPSHOT.member, &[], None)
        .await?;
    session.printer.list(
        &snapshots,
        "snapshots of volumes",
        &["NAME", "OF", "STATUS", "SIZE", "REGION", "AGE", "ID"],
        |snapshot| {
            vec![
                text(snapshot, "name").to_owned(),
                of(snapshot),
                text(snapshot, "status").to_owned(),
                format!("{} GB", number(snapshot, "size")),
                text(snapshot, "region").to_owned(),
                age(text(snapshot, "created_at"), session.now()),
                short(text(snapshot, "id")),
            ]
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_shown_at_an_absolute_path() {
        let parsed: Attachment = "data:/var/lib".parse().unwrap();
        assert_eq!(
            (parsed.volume.as_str(), parsed.path.as_str()),
            ("data", "/var/lib")
        );
        for wrong in ["data", "data:", "data:var", ":/var"] {
            assert!(wrong.parse::<Attachment>().is_err(), "{wrong}");
        }
    }
}
