//! `tram sandbox create|run|exec|ssh|ls|cp|snapshot|fork|delete`: isolated computers for code that nobody has read.
//!
//! A sandbox is a service of type SANDBOX. Commands are run as `tram exec` does, so they need no shell in the image; the
//! executor inside serves the clients of the sandbox protocol. What `run` made it takes away again, however it ends.

mod copy;
pub(super) mod fork;
mod snapshot;

pub(super) use self::snapshot::derived_name;

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use super::{
    delete,
    deploy::{self, specs::Variable},
    exec, services,
    volumes::{self, Attachment},
};
use crate::{
    EXIT_SUCCESS,
    age::age,
    client::Client,
    error::Error,
    resolve::{self, Service},
    session::Session,
    view::{list, take, text, texts},
};

/// The image when none is named; an operator may have it lead to one of the house (`image_aliases`).
pub(super) const DEFAULT_IMAGE: &str = "koyeb/sandbox";
/// The size when none is named.
pub(super) const DEFAULT_INSTANCE_TYPE: &str = "micro";
/// Where clients look for the executor, and for the port that the sandbox shows.
const PORTS: [(u16, &str); 2] = [(3030, "/koyeb-sandbox/"), (3031, "/")];
/// The variable of its definition that holds a sandbox's secret.
pub(super) const SECRET_VARIABLE: &str = "SANDBOX_SECRET";
/// How often a new sandbox is looked at: one starts in tens of milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How much of a secret goes into each of its halves: two random ids make more than 240 random bits.
const SECRET_HALVES: usize = 2;

/// What to do with sandboxes.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Make a sandbox and print its name
    Create(Create),
    /// Run one command in a sandbox of its own, which is deleted after
    ///
    /// Standard input, output and the exit code are the command's: `tram sandbox run --image python -- python -c
    /// 'print(2)'`.
    Run(Run),
    /// Run a command inside a sandbox
    Exec(exec::Arguments),
    /// Open a terminal in a sandbox
    ///
    /// A shell, or the command given, with this terminal's input, window size and exit code. It ends when this does. It
    /// needs no ssh server, no key and no port.
    Ssh(Ssh),
    /// List the sandboxes
    #[command(visible_alias = "list")]
    Ls,
    /// Copy files and directories into a sandbox or out of it
    ///
    /// One side is SANDBOX:PATH. Into a directory that exists, else under the name given; permissions are kept. With - the
    /// bytes of one file come from standard input or go to standard output.
    Cp(copy::Arguments),
    /// Keep a sandbox as it is now, for others to start from
    ///
    /// Its disk, and with `--memory` its processes too. Prints the snapshot's name once it can be used. `tram sandbox
    /// create --snapshot` starts from it, `tram snapshots` lists, verifies and deletes.
    Snapshot(snapshot::Arguments),
    /// Make copies of a sandbox as it is now: of its disk and of the processes that run in it
    ///
    /// Each copy is a sandbox of its own, with a name, an address and a secret of its own, made as the first was: same
    /// image, variables and size. What runs in the first goes on in each, from one still moment, and so does the first.
    /// Where processes cannot be copied the command says why; `--disk-only` copies the disk, and programs start anew.
    Fork(fork::Arguments),
    /// Delete a sandbox and everything in it
    Delete(services::Target),
}

/// What a sandbox is made of.
#[derive(Debug, clap::Args)]
pub struct Make {
    /// The image
    #[arg(long, value_name = "IMAGE", default_value = DEFAULT_IMAGE)]
    pub image: String,
    /// Variable of the environment inside; several can be given
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub env: Vec<Variable>,
    /// Size, such as nano, micro or small
    #[arg(long, value_name = "TYPE", default_value = DEFAULT_INSTANCE_TYPE)]
    pub instance_type: String,
    /// Where to run it; without it the first region of the server
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Secret of a registry, for images that are not public
    #[arg(long, value_name = "SECRET", default_value = "", hide_default_value = true)]
    pub registry_secret: String,
    /// Wait no longer than this for it to be ready
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = crate::age::parse_span)]
    pub timeout: Duration,
}

/// What is in a sandbox when it starts, beside its image.
#[derive(Debug, Default, clap::Args)]
pub struct Start {
    /// Snapshot of a sandbox to start from; the image is then the one it was taken over
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "image")]
    pub snapshot: Option<String>,
    /// Volume, and where it is shown; several can be given
    #[arg(long, value_name = "NAME:/PATH")]
    pub volume: Vec<Attachment>,
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name; without it one is made up
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// What it is made of.
    #[command(flatten)]
    pub make: Make,
    /// What is in it.
    #[command(flatten)]
    pub start: Start,
    /// Sleep after so long without requests, such as 5m; without it it never sleeps
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub sleep_after: Option<Duration>,
    /// Delete it so long after it was made
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub delete_after: Option<Duration>,
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// What it is made of.
    #[command(flatten)]
    pub make: Make,
    /// What is in it.
    #[command(flatten)]
    pub start: Start,
    /// Pass standard input on although it is a terminal
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `ssh`.
#[derive(Debug, clap::Args)]
pub struct Ssh {
    /// The sandbox, by its name or its id
    #[arg(value_name = "SANDBOX")]
    pub target: String,
    /// The command and its arguments, after --; without it /bin/sh
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<u8, Error> {
    match action {
        Action::Create(arguments) => create(&session, arguments).await?,
        Action::Run(arguments) => return run_once(session, arguments).await,
        Action::Exec(arguments) => return exec::run(session, arguments).await,
        Action::Ssh(arguments) => return ssh(session, arguments).await,
        Action::Ls => ls(&session).await?,
        Action::Cp(arguments) => Box::pin(copy::run(session, arguments)).await?,
        Action::Snapshot(arguments) => snapshot::run(&session, arguments).await?,
        Action::Fork(arguments) => Box::pin(fork::run(session, arguments)).await?,
        Action::Delete(target) => delete::run(session, target).await?,
    }
    Ok(EXIT_SUCCESS)
}

async fn create(session: &Session, arguments: Create) -> Result<(), Error> {
    let client = session.client()?;
    let name = arguments.name.unwrap_or_else(made_up_name);
    let scaling = match arguments.sleep_after {
        Some(after) => json!({
            "min": 0, "max": 1, "targets": [{ "sleep_idle_delay": { "deep_sleep_value": after.as_secs() } }],
        }),
        None => json!({ "min": 1, "max": 1 }),
    };
    let delete_after = arguments.delete_after.map_or(0, |after| after.as_secs());
    let service = make(
        &client,
        &name,
        &arguments.make,
        &arguments.start,
        &scaling,
        delete_after,
    )
    .await?;
    ready(&client, &service, arguments.make.timeout).await?;
    session.printer.value(&service, || name.clone())?;
    Ok(())
}

async fn run_once(session: Session, arguments: Run) -> Result<u8, Error> {
    let client = session.client()?;
    let interrupt = session.host.interrupt.clone();
    let mut end = signal(SignalKind::terminate()).map_err(Error::Terminal)?;
    let name = made_up_name();
    // Never asleep: a command that says nothing for long is no traffic.
    let scaling = json!({ "min": 1, "max": 1 });
    let service = make(&client, &name, &arguments.make, &arguments.start, &scaling, 0).await?;
    let id = text(&service, "id").to_owned();
    let command = exec::Arguments {
        target: id.clone(),
        interactive: arguments.interactive || arguments.tty || !session.host.stdin_is_terminal,
        tty: arguments.tty,
        command: arguments.command,
    };
    let outcome = tokio::select! {
        outcome = async {
            ready(&client, &service, arguments.make.timeout).await?;
            Box::pin(exec::run(session, command)).await
        } => outcome,
        () = interrupt.wait() => Err(Error::Interrupted),
        _ = end.recv() => Err(Error::Exec("ended by SIGTERM".to_owned())),
    };
    // What went wrong before is the news; the sandbox that stays is seen by `ls`.
    let deleted = client.delete(&format!("/v1/services/{id}")).await;
    let code = outcome?;
    deleted?;
    Ok(code)
}

/// As `exec -it`; without a terminal, as `ssh` is in a script, input and output pass as they are.
async fn ssh(session: Session, arguments: Ssh) -> Result<u8, Error> {
    let tty = session.host.stdin_is_terminal;
    let arguments = exec::Arguments {
        target: arguments.target,
        interactive: true,
        tty,
        command: arguments.command,
    };
    exec::run(session, arguments).await
}

/// Orders a sandbox, in an app that goes with it.
pub(super) async fn make(
    client: &Client,
    name: &str,
    wanted: &Make,
    start: &Start,
    scaling: &Value,
    delete_after_secs: u64,
) -> Result<Value, Error> {
    let mut definition = definition(client, name, wanted, start, scaling).await?;
    if let Some(env) = definition.get_mut("env").and_then(Value::as_array_mut)
        && !env
            .iter()
            .any(|variable| text(variable, "key") == SECRET_VARIABLE)
    {
        env.push(json!({ "key": SECRET_VARIABLE, "value": secret() }));
    }
    let snapshot = match &start.snapshot {
        Some(given) => resolve::id(client, resolve::INSTANCE_SNAPSHOT, given).await?,
        None => String::new(),
    };
    let service = json!({
        "definition": definition,
        "life_cycle": { "delete_after_create": delete_after_secs },
        "instance_snapshot_id": snapshot,
    });
    compose(client, name, &service).await
}

/// The definition of a sandbox, without a secret unless one is wanted.
pub(super) async fn definition(
    client: &Client,
    name: &str,
    wanted: &Make,
    start: &Start,
    scaling: &Value,
) -> Result<Value, Error> {
    let region = match &wanted.region {
        Some(region) => region.clone(),
        None => deploy::default_region(client).await?,
    };
    let env: BTreeMap<&str, &str> = wanted
        .env
        .iter()
        .map(|variable| (variable.key.as_str(), variable.value.as_str()))
        .collect();
    let env: Vec<Value> = env
        .into_iter()
        .map(|(key, value)| json!({ "key": key, "value": value }))
        .collect();
    Ok(json!({
        "name": name,
        "type": "SANDBOX",
        "docker": { "image": wanted.image, "image_registry_secret": wanted.registry_secret },
        "env": env,
        "ports": PORTS.map(|(port, _)| json!({ "port": port, "protocol": "http" })),
        "routes": PORTS.map(|(port, path)| json!({ "port": port, "path": path })),
        "instance_types": [{ "type": wanted.instance_type }],
        "regions": [region],
        "scalings": [scaling],
        "volumes": volumes::attached(client, &start.volume).await?,
    }))
}

/// Orders one service in an app of the same name, which goes with it.
async fn compose(client: &Client, name: &str, service: &Value) -> Result<Value, Error> {
    let body = json!({
        "app": { "name": name, "life_cycle": { "delete_when_empty": true } },
        "services": [service],
    });
    let mut reply = client.post("/v1/compose", &body).await?;
    let made = take(&mut reply, "services");
    made.get(0).cloned().ok_or_else(|| {
        Error::Exec("the server's reply has not the one service that was asked for".to_owned())
    })
}

/// The sandbox that `given` names; another service is refused.
async fn find(client: &Client, given: &str) -> Result<Service, Error> {
    let found = resolve::service(client, given).await?;
    if text(&found.value, "type") == "SANDBOX" {
        return Ok(found);
    }
    Err(Error::input(
        format!("`{}` is no sandbox", found.path()),
        "`tram sandbox ls` shows the sandboxes",
    ))
}

/// Waits until the sandbox can be used.
pub(super) async fn ready(client: &Client, service: &Value, patience: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    let path = format!("/v1/deployments/{}", text(service, "latest_deployment_id"));
    loop {
        let mut reply = client.get(&path, &[]).await?;
        let deployment = take(&mut reply, "deployment");
        let status = text(&deployment, "status");
        match status {
            "HEALTHY" | "SLEEPING" => return Ok(()),
            "ERROR" | "UNHEALTHY" | "STOPPED" | "STOPPING" | "CANCELED" | "CANCELING" | "DEGRADED" => {
                let messages = texts(&deployment, "messages").join("; ");
                return Err(Error::Exec(format!("the sandbox does not start: {messages}")));
            }
            _ if Instant::now() >= deadline => {
                return Err(Error::Exec(format!(
                    "the sandbox is not ready after {}; it is {status}",
                    crate::age::span(patience)
                )));
            }
            _ => sleep(POLL_INTERVAL).await,
        }
    }
}

async fn ls(session: &Session) -> Result<(), Error> {
    let client = session.client()?;
    let mut sandboxes: Vec<Service> = resolve::services(&client).await?;
    sandboxes.retain(|service| text(&service.value, "type") == "SANDBOX");
    let values: Vec<Value> = sandboxes.iter().map(|service| service.value.clone()).collect();
    session.printer.list(
        &values,
        "sandboxes",
        &["SANDBOX", "STATUS", "AGE", "ID", "MESSAGE"],
        |service| {
            vec![
                text(service, "name").to_owned(),
                text(service, "status").to_owned(),
                age(text(service, "created_at"), session.now()),
                crate::view::short(text(service, "id")),
                list(service, "messages")
                    .first()
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned(),
            ]
        },
    )?;
    Ok(())
}

/// A name that is not taken.
pub(super) fn made_up_name() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("box-{}", random.get(..8).unwrap_or_default())
}

/// 43 characters, none of which a client takes for something encoded.
fn secret() -> String {
    let halves = (0..SECRET_HALVES).flat_map(|_| uuid::Uuid::new_v4().into_bytes());
    URL_SAFE_NO_PAD.encode(halves.collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_different() {
        assert_eq!(secret().len(), 43);
        assert_ne!(secret(), secret());
        assert_ne!(made_up_name(), made_up_name());
    }
}
