//! `tram sandbox fork NAME --count N`: copies of a sandbox as it is now: of its disk, and of the processes that run in it.
//!
//! A snapshot is taken in one still moment, the copies are started from it side by side, and the server is told to remove
//! it with the last of them. All or nothing: when one does not start, what was made goes again.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

pub(in crate::commands) use super::snapshot::Holding;
use super::snapshot::{derived_name, take_of};
use crate::{
    client::Client,
    error::Error,
    resolve::Service,
    session::Session,
    view::{list, number, take, text},
};

/// Most copies of one call: each is a service that starts at once, and they share the machine with everybody else.
pub(in crate::commands) const COUNT_MAX: usize = 100;

/// How long a copy that was ordered may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(300);

/// Arguments of `fork`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The sandbox, by its name or its id
    #[arg(value_name = "SANDBOX")]
    pub target: String,
    /// How many copies
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1)]
    pub count: usize,
    /// Copy the disk alone; the definition's program starts anew in each copy
    #[arg(long)]
    pub disk_only: bool,
    /// Keep the snapshot, to make more of it later; without this it goes with the last of the copies
    #[arg(long)]
    pub keep: bool,
    /// Wait no longer than this for the snapshot, and for each copy; without this, for as long as the server is at the
    /// snapshot, and five minutes for each copy
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub timeout: Option<Duration>,
}

pub(super) async fn run(session: Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let sandbox = super::find(&client, &arguments.target).await?;
    let forked = fork(
        &client,
        &sandbox,
        arguments.count,
        Holding::of(!arguments.disk_only),
        arguments.keep,
        arguments.timeout,
    )
    .await?;
    if arguments.disk_only {
        session
            .printer
            .note("copied the disk; what runs in the first one was not copied");
    }
    if arguments.keep {
        session
            .printer
            .note(format_args!("kept the snapshot `{}`", forked.snapshot));
    }
    session.printer.value(&Value::Array(forked.services.clone()), || {
        let names: Vec<&str> = forked
            .services
            .iter()
            .map(|service| text(service, "name"))
            .collect();
        names.join("\n")
    })
}

/// What came of a fork.
pub(in crate::commands) struct Forked {
    /// The copies, as the server shows services.
    pub(in crate::commands) services: Vec<Value>,
    /// The name of the snapshot they start from.
    pub(in crate::commands) snapshot: String,
}

/// Makes `count` copies of a sandbox and waits until all can be used.
pub(in crate::commands) async fn fork(
    client: &Client,
    sandbox: &Service,
    count: usize,
    holding: Holding,
    keep: bool,
    patience: Option<Duration>,
) -> Result<Forked, Error> {
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(Error::input(
            format!("cannot make {count} copies"),
            format!("`--count` is between 1 and {COUNT_MAX}"),
        ));
    }
    let (definition, life_cycle) = made_as(client, sandbox).await?;
    let name = derived_name(&sandbox.name);
    let snapshot = match take_of(client, sandbox, &name, holding, patience).await {
        Err(error) if holding == Holding::Processes => return Err(or_disk_only(error)),
        taken => taken?,
    };
    let id = text(&snapshot, "id");
    let copies = (0..count).map(|_| {
        let copy = derived_name(&sandbox.name);
        let service = json!({
            "definition": renamed(&definition, &copy),
            "life_cycle": life_cycle,
            "instance_snapshot_id": id,
        });
        async move { super::compose(client, &copy, &service).await }
    });
    let made = join_all(copies).await;
    let services: Vec<Value> = made.iter().flatten().cloned().collect();
    let refused = made.into_iter().find_map(Result::err);
    let outcome = match refused {
        Some(error) => Err(error),
        None => {
            let ready = services
                .iter()
                .map(|service| super::ready(client, service, patience.unwrap_or(READY_PATIENCE)));
            try_join_all(ready).await.map(|_| ())
        }
    };
    if let Err(error) = outcome {
        // What went wrong is the news; a copy that stays is seen by `ls`.
        let paths = services
            .iter()
            .map(|service| format!("/v1/services/{}", text(service, "id")));
        join_all(paths.map(|path| async move { client.delete(&path).await })).await;
        let _ = forget(client, id).await;
        return Err(error);
    }
    if !keep {
        forget(client, id).await?;
    }
    Ok(Forked {
        services,
        snapshot: name,
    })
}

/// Processes cannot always be copied; a disk can.
fn or_disk_only(error: Error) -> Error {
    match error {
        Error::Exec(why) => Error::Exec(format!("{why} (`--disk-only` copies the disk alone)")),
        other => other,
    }
}

/// Has the server remove the snapshot once nothing starts from it.
async fn forget(client: &Client, snapshot: &str) -> Result<(), Error> {
    let path = format!("/v1/instance_snapshots/{snapshot}?when_unused=true");
    client.delete(&path).await?;
    Ok(())
}

/// The definition and the life cycle that a sandbox runs with.
async fn made_as(client: &Client, sandbox: &Service) -> Result<(Value, Value), Error> {
    let path = format!("/v1/services/{}", sandbox.id);
    let service = take(&mut client.get(&path, &[]).await?, "service");
    let deployment = match text(&service, "active_deployment_id") {
        "" => text(&service, "latest_deployment_id"),
        active => active,
    };
    let path = format!("/v1/deployments/{deployment}");
    let mut deployment = take(&mut client.get(&path, &[]).await?, "deployment");
    let definition = take(&mut deployment, "definition");
    if !list(&definition, "volumes").is_empty() {
        return Err(Error::input(
            format!(
                "sandbox `{}` has a volume, which belongs to it alone",
                sandbox.name
            ),
            "copy the volume by `tram volumes snapshot` and `tram volumes restore`, and give the copy to a new sandbox",
        ));
    }
    let spans = service.get("life_cycle").cloned().unwrap_or_default();
    let life_cycle = json!({
        "delete_after_create": number(&spans, "delete_after_create"),
        "delete_after_sleep": number(&spans, "delete_after_sleep"),
    });
    Ok((definition, life_cycle))
}

/// The definition of a copy: another name, and a secret of its own.
fn renamed(definition: &Value, name: &str) -> Value {
    let mut copy = definition.clone();
    copy["name"] = json!(name);
    let mut env: Vec<Value> = list(&copy, "env")
        .iter()
        .filter(|variable| text(variable, "key") != super::SECRET_VARIABLE)
        .cloned()
        .collect();
    env.push(json!({ "key": super::SECRET_VARIABLE, "value": super::secret() }));
    copy["env"] = Value::Array(env);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_a_name_and_a_secret_of_its_own_and_all_else_of_the_first() {
        let first = json!({
            "name": "first", "type": "SANDBOX", "docker": { "image": "python" },
            "env": [{ "key": "SANDBOX_SECRET", "value": "old" }, { "key": "A", "value": "1" }],
        });
        let copy = renamed(&first, "second");
        assert_eq!(copy["name"], "second");
        assert_eq!(copy["docker"], first["docker"]);
        assert_eq!(copy["env"][0], first["env"][1]);
        let secret = copy["env"][1]["value"].as_str().unwrap();
        assert_eq!((copy["env"].as_array().unwrap().len(), secret.len()), (2, 43));
        assert_ne!(secret, renamed(&first, "third")["env"][1]["value"]);
    }

    #[test]
    fn names_of_copies_fit_and_differ() {
        let long = "a".repeat(80);
        assert!(derived_name(&long).len() <= 63);
        assert_ne!(derived_name("box"), derived_name("box"));
        assert!(derived_name("box").starts_with("box-"));
    }
}
