//! `tram services list|get|delete|pause|resume|redeploy`.

use serde_json::Value;

use super::{delete, pause, redeploy, resume};
use crate::{
    EXIT_SUCCESS,
    age::age,
    client::Client,
    error::Error,
    printer::pairs,
    resolve,
    session::Session,
    view::{list, number, short, take, text, texts},
};

/// What to do with services.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the services
    List {
        /// Only those of this app
        #[arg(long, value_name = "APP")]
        app: Option<String>,
    },
    /// Show one service
    Get(Target),
    /// Delete a service
    Delete(Target),
    /// Stop a service and keep its definition
    Pause(Target),
    /// Start a paused service
    Resume(Target),
    /// Deploy the newest definition of a service again
    Redeploy(redeploy::Arguments),
}

/// Which service.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, app/name, its id, or at least eight characters of its id
    #[arg(value_name = "SERVICE")]
    pub service: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<u8, Error> {
    match action {
        Action::List { app } => list_all(&session, app.as_deref()).await?,
        Action::Get(target) => get(&session, &target.service).await?,
        Action::Delete(target) => delete::run(session, target).await?,
        Action::Pause(target) => pause::run(session, target).await?,
        Action::Resume(target) => resume::run(session, target).await?,
        Action::Redeploy(arguments) => return redeploy::run(session, arguments).await,
    }
    Ok(EXIT_SUCCESS)
}

async fn list_all(session: &Session, app: Option<&str>) -> Result<(), Error> {
    let client = session.client()?;
    let mut services = resolve::services(&client).await?;
    if let Some(app) = app {
        let app_id = resolve::id(&client, resolve::APP, app).await?;
        services.retain(|service| service.app_id == app_id);
    }
    let values: Vec<Value> = services.iter().map(|service| service.value.clone()).collect();
    let name_of = |value: &Value| {
        let id = text(value, "id");
        services
            .iter()
            .find(|service| service.id == id)
            .map(resolve::Service::path)
            .unwrap_or_default()
    };
    session.printer.list(
        &values,
        "services",
        &["SERVICE", "TYPE", "STATUS", "AGE", "ID", "MESSAGE"],
        |service| {
            vec![
                name_of(service),
                text(service, "type").to_ascii_lowercase(),
                text(service, "status").to_owned(),
                age(text(service, "created_at"), session.now()),
                short(text(service, "id")),
                texts(service, "messages").into_iter().next().unwrap_or_default(),
            ]
        },
    )
}

async fn get(session: &Session, given: &str) -> Result<(), Error> {
    let client = session.client()?;
    let found = resolve::service(&client, given).await?;
    let service = take(
        &mut client.get(&format!("/v1/services/{}", found.id), &[]).await?,
        "service",
    );
    let definition = latest_definition(&client, &service).await?;
    let (instances, scaling) = decided(&client, &service).await?;
    session.printer.value(&service, || {
        pairs(&[
            ("service", found.path()),
            ("id", text(&service, "id").to_owned()),
            ("type", text(&service, "type").to_ascii_lowercase()),
            ("status", text(&service, "status").to_owned()),
            ("image", image(&definition)),
            ("scale", scale(&definition)),
            ("instances", instances),
            ("scaling", scaling),
            ("active deployment", short(text(&service, "active_deployment_id"))),
            ("latest deployment", short(text(&service, "latest_deployment_id"))),
            (
                "created",
                age(text(&service, "created_at"), session.now()) + " ago",
            ),
            ("messages", texts(&service, "messages").join("\n")),
        ])
    })
}

/// The definition of a service's latest deployment; `null` when it has none.
pub(crate) async fn latest_definition(client: &Client, service: &Value) -> Result<Value, Error> {
    let id = text(service, "latest_deployment_id");
    if id.is_empty() {
        return Ok(Value::Null);
    }
    let mut deployment = take(
        &mut client.get(&format!("/v1/deployments/{id}"), &[]).await?,
        "deployment",
    );
    Ok(take(&mut deployment, "definition"))
}

/// How many instances the active deployment should have and has, and why; each region on a line of its own where there
/// are several. Empty when no deployment is active.
async fn decided(client: &Client, service: &Value) -> Result<(String, String), Error> {
    let id = text(service, "active_deployment_id");
    if id.is_empty() {
        return Ok((String::new(), String::new()));
    }
    let reply = client.get(&format!("/v1/deployment/{id}/scaling"), &[]).await?;
    let decisions = list(&reply, "decisions");
    let lines = |words: &dyn Fn(&Value) -> String| {
        let line = |decision: &Value| {
            let place = if decisions.len() > 1 {
                format!("{}: ", text(decision, "region"))
            } else {
                String::new()
            };
            format!("{place}{}", words(decision))
        };
        decisions.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    let counted = |decision: &Value| {
        let (wanted, ready) = (number(decision, "wanted"), number(decision, "ready"));
        format!("{wanted} wanted, {ready} ready")
    };
    let why = |decision: &Value| {
        let (message, change) = (text(decision, "message"), text(decision, "last_change"));
        if change.is_empty() || change == message {
            message.to_owned()
        } else {
            format!("{message}; before: {change}")
        }
    };
    Ok((lines(&counted), lines(&why)))
}

/// The image of a definition; empty when it has another source.
pub(crate) fn image(definition: &Value) -> String {
    definition
        .get("docker")
        .map(|docker| text(docker, "image").to_owned())
        .unwrap_or_default()
}

fn scale(definition: &Value) -> String {
    list(definition, "scalings")
        .first()
        .map(|scaling| match (number(scaling, "min"), number(scaling, "max")) {
            (min, max) if min == max => min.to_string(),
            (min, max) => format!("{min} to {max}"),
        })
        .unwrap_or_default()
}
