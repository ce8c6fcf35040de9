//! `tram pools create|ls|show|resize|claim|delete`: services that are kept ready, and taken.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    sandbox::{self, Make, Start},
    services,
};
use crate::{
    age::age,
    client::Client,
    error::Error,
    printer::pairs,
    resolve::{self, POOL},
    session::Session,
    view::{acted, number, short, take, text, texts},
};

/// How often a pool is looked at whose members start.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What to do with pools.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Keep a number of sandboxes ready, or services like one that there is
    Create(Box<Create>),
    /// List the pools
    #[command(visible_alias = "list")]
    Ls,
    /// Show one pool
    #[command(visible_alias = "get")]
    Show(Target),
    /// Change how many a pool keeps ready
    Resize {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// How many
        #[arg(long, value_name = "N")]
        size: u32,
    },
    /// Take one service out of a pool and print its name
    ///
    /// It is yours then, and stays when the pool goes. Waits until it can be used, which it can at once unless the pool
    /// was empty.
    Claim {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Names this claim: asking again with the same gives the same service
        #[arg(long, value_name = "TEXT")]
        request_id: Option<String>,
        /// Wait no longer than this for a service that is made because the pool was empty
        #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = crate::age::parse_span)]
        timeout: Duration,
    },
    /// Delete a pool and the services in it that nobody took
    Delete(Target),
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// How many to keep ready
    #[arg(long, value_name = "N")]
    pub size: u32,
    /// Have services of the definition of this one, instead of sandboxes; secrets of its own stay its own
    #[arg(long, value_name = "SERVICE", conflicts_with_all = ["image", "env", "instance_type", "region", "registry_secret"])]
    pub like: Option<String>,
    /// What its sandboxes are made of.
    #[command(flatten)]
    pub make: Make,
    /// Wait until all are ready
    #[arg(long)]
    pub wait: bool,
}

/// Which pool.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, its id, or at least eight characters of its id
    #[arg(value_name = "POOL")]
    pub pool: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::Create(arguments) => create(&session, &client, *arguments).await,
        Action::Ls => ls(&session, &client).await,
        Action::Show(target) => show(&session, &client, &target.pool).await,
        Action::Resize { target, size } => {
            let id = resolve::id(&client, POOL, &target.pool).await?;
            let path = format!("/v1/service_pools/{id}?update_mask=size");
            let mut reply = client.put(&path, &json!({ "size": size })).await?;
            printer.done(
                &take(&mut reply, "service_pool"),
                format_args!("pool `{}` keeps {size} ready", target.pool),
            )
        }
        Action::Claim {
            target,
            request_id,
            timeout,
        } => claim(&session, &client, &target.pool, request_id, timeout).await,
        Action::Delete(target) => {
            let id = resolve::id(&client, POOL, &target.pool).await?;
            client.delete(&format!("/v1/service_pools/{id}")).await?;
            printer.done(
                &acted("delete", &id, &target.pool),
                format_args!("deleting pool `{}`", target.pool),
            )
        }
    }
}

async fn create(session: &Session, client: &Client, arguments: Create) -> Result<(), Error> {
    let definition = match &arguments.like {
        Some(given) => {
            let service = resolve::service(client, given).await?;
            let mut definition = services::latest_definition(client, &service.value).await?;
            own_secret_out(&mut definition);
            definition
        }
        None => {
            let scaling = json!({ "min": 1, "max": 1 });
            sandbox::definition(
                client,
                &arguments.name,
                &arguments.make,
                &Start::default(),
                &scaling,
            )
            .await?
        }
    };
    let body = json!({ "name": arguments.name, "size": arguments.size, "definition": definition });
    let mut pool = take(
        &mut client.post("/v1/service_pools", &body).await?,
        "service_pool",
    );
    session.printer.note(format_args!(
        "created pool `{}` of {}",
        arguments.name, arguments.size
    ));
    if arguments.wait {
        pool = ready(client, &pool, arguments.make.timeout).await?;
    }
    session.printer.value(&pool, || text(&pool, "id").to_owned())
}

/// Each member of a pool gets a secret of its own, unless the definition brings one, which all would share.
fn own_secret_out(definition: &mut Value) {
    if let Some(env) = definition.get_mut("env").and_then(Value::as_array_mut) {
        env.retain(|variable| text(variable, "key") != sandbox::SECRET_VARIABLE);
    }
}

async fn ready(client: &Client, pool: &Value, patience: Duration) -> Result<Value, Error> {
    let deadline = Instant::now() + patience;
    let path = format!("/v1/service_pools/{}", text(pool, "id"));
    loop {
        let pool = take(&mut client.get(&path, &[]).await?, "service_pool");
        let messages = texts(&pool, "messages").join("; ");
        match text(&pool, "status").rsplit('_').next().unwrap_or_default() {
            "READY" => return Ok(pool),
            "ERROR" => {
                return Err(Error::Exec(format!(
                    "the pool's services do not start: {messages}"
                )));
            }
            "DELETING" => return Err(Error::Exec("the pool is being deleted".to_owned())),
            _ if Instant::now() >= deadline => {
                return Err(Error::Exec(format!(
                    "{} of {} are ready after {}",
                    number(&pool, "ready_count"),
                    number(&pool, "size"),
                    crate::age::span(patience)
                )));
            }
            _ => sleep(POLL_INTERVAL).await,
        }
    }
}

async fn claim(
    session: &Session,
    client: &Client,
    given: &str,
    request_id: Option<String>,
    patience: Duration,
) -> Result<(), Error> {
    let id = resolve::id(client, POOL, given).await?;
    let request_id = request_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let body = json!({ "pool_id": id, "request_id": request_id });
    let claimed = client.post("/v1/claim", &body).await?;
    let path = format!("/v1/services/{}", text(&claimed, "service_id"));
    let service = take(&mut client.get(&path, &[]).await?, "service");
    if claimed.get("prewarmed").and_then(Value::as_bool) != Some(true) {
        session
            .printer
            .note("the pool had none ready: one is made, which takes longer");
        sandbox::ready(client, &service, patience).await?;
    }
    session
        .printer
        .value(&claimed, || text(&service, "name").to_owned())
}

/// The kind of services of a pool, in small letters.
fn kind(pool: &Value) -> String {
    let definition = pool.get("definition").cloned().unwrap_or_default();
    text(&definition, "type").to_ascii_lowercase()
}

/// The status without what all of them begin with.
fn status(pool: &Value) -> String {
    let status = text(pool, "status");
    status
        .strip_prefix("SERVICE_POOL_STATUS_")
        .unwrap_or(status)
        .to_owned()
}

fn readiness(pool: &Value) -> String {
    format!("{} of {}", number(pool, "ready_count"), number(pool, "size"))
}

async fn ls(session: &Session, client: &Client) -> Result<(), Error> {
    let pools = client.list(POOL.path, POOL.member, &[], None).await?;
    session.printer.list(
        &pools,
        "pools",
        &["NAME", "TYPE", "STATUS", "READY", "AGE", "ID", "MESSAGE"],
        |pool| {
            vec![
                text(pool, "name").to_owned(),
                kind(pool),
                status(pool),
                readiness(pool),
                age(text(pool, "created_at"), session.now()),
                short(text(pool, "id")),
                texts(pool, "messages").into_iter().next().unwrap_or_default(),
            ]
        },
    )
}

async fn show(session: &Session, client: &Client, given: &str) -> Result<(), Error> {
    let id = resolve::id(client, POOL, given).await?;
    let path = format!("/v1/service_pools/{id}");
    let pool = take(&mut client.get(&path, &[]).await?, "service_pool");
    let definition = pool.get("definition").cloned().unwrap_or_default();
    session.printer.value(&pool, || {
        pairs(&[
            ("name", text(&pool, "name").to_owned()),
            ("id", text(&pool, "id").to_owned()),
            ("type", kind(&pool)),
            ("status", status(&pool)),
            ("ready", readiness(&pool)),
            ("image", services::image(&definition)),
            ("generation", number(&pool, "generation").to_string()),
            ("created", age(text(&pool, "created_at"), session.now()) + " ago"),
            ("messages", texts(&pool, "messages").join("\n")),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_do_not_share_the_secret_of_the_one_they_are_like() {
        let mut definition =
            json!({ "env": [{ "key": "SANDBOX_SECRET", "value": "x" }, { "key": "A", "value": "1" }] });
        own_secret_out(&mut definition);
        assert_eq!(definition, json!({ "env": [{ "key": "A", "value": "1" }] }));
    }
}
