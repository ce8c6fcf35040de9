//! `tram deploy IMAGE --name N`: from an image to a URL.
//!
//! The app and the service are made when they are not there. An existing service keeps everything that is not
//! given anew: its definition is read, changed and sent back.

pub(crate) mod definition;
pub(crate) mod progress;
pub(crate) mod specs;
pub(crate) mod wait;

use serde_json::{Value, json};
use tram_types::definition::DeploymentDefinition;

use self::{
    specs::{Check, Egress, Port, Route, ScaleOn, Variable},
    wait::Before,
};
use crate::{
    EXIT_SUCCESS,
    client::{self, Client},
    error::Error,
    resolve::Service,
    session::Session,
    view::{list, take, text},
};

/// Arguments of `deploy`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image, such as nginx or registry.example.org/team/shop:1.4
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Name of the service
    #[arg(long, short, value_name = "NAME")]
    pub name: String,
    /// Name of its app; without it the service's name
    #[arg(long, value_name = "APP")]
    pub app: Option<String>,
    /// Kind of service: web (the usual one) is reached from outside, worker is not
    #[arg(long, value_enum, value_name = "TYPE")]
    pub r#type: Option<Type>,
    /// Port that the program listens on, with its protocol; several can be given
    #[arg(long = "port", short, value_name = "PORT[:http|http2|tcp]")]
    pub ports: Vec<Port>,
    /// Path of the app's domain that leads to a port, such as /api:8000; several can be given
    #[arg(long = "route", value_name = "PATH:PORT")]
    pub routes: Vec<Route>,
    /// Port to publish by TCP, for programs that do not speak HTTP; several can be given
    #[arg(long = "proxy-port", value_name = "PORT")]
    pub proxy_ports: Vec<u16>,
    /// Variable of the program's environment; several can be given
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub env: Vec<Variable>,
    /// Variable that takes the value of a secret; several can be given
    #[arg(long, value_name = "KEY=SECRET")]
    pub secret: Vec<Variable>,
    /// Variable to take away from an existing service; several can be given
    #[arg(long, value_name = "KEY")]
    pub unset_env: Vec<String>,
    /// Size of an instance, such as nano, micro or small; micro when nothing is said
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// Where to run it; without it the first region of the server; several can be given
    #[arg(long, value_name = "REGION")]
    pub region: Vec<String>,
    /// How many instances, and when none.
    #[command(flatten)]
    pub load: Load,
    /// Health check, such as http:8000:/health or tcp:5432; without it a TCP check of each port; several can be given
    #[arg(long = "check", value_name = "CHECK")]
    pub checks: Vec<Check>,
    /// Argument after the image's entrypoint; it is never split into words
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub command: Option<String>,
    /// Argument after the command; several can be given
    #[arg(long = "args", value_name = "TEXT", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Replaces the image's entrypoint; several can be given
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,
    /// Secret of a registry, for images that are not public
    #[arg(long, value_name = "SECRET")]
    pub registry_secret: Option<String>,
    /// What it may reach outside: none, all, or an address, a network or a name, such as 10.0.0.0/8, pypi.org or
    /// *.example.org; several can be given
    #[arg(long, value_name = "DESTINATION")]
    pub egress: Vec<Egress>,
    /// Volume, and where it is shown; several can be given
    #[arg(long, value_name = "NAME:/PATH")]
    pub volume: Vec<super::volumes::Attachment>,
    /// How the new version takes over from the old one
    #[arg(long, value_enum, value_name = "STRATEGY")]
    pub strategy: Option<Strategy>,
    /// How to wait.
    #[command(flatten)]
    pub waiting: wait::Waiting,
}

/// How many instances, on what load, and when they sleep.
#[derive(Debug, Default, clap::Args)]
pub struct Load {
    /// Fewest instances; 0 lets the service sleep
    #[arg(long, value_name = "N")]
    pub min: Option<u16>,
    /// Most instances; needs --scale-on when it is more than --min
    #[arg(long, value_name = "N")]
    pub max: Option<u16>,
    /// What one instance should carry, to scale between --min and --max: cpu or memory in percent, requests-per-second,
    /// concurrent-requests, or response-time in milliseconds; several can be given, and the largest answer wins
    #[arg(long, value_name = "WHAT=VALUE")]
    pub scale_on: Vec<ScaleOn>,
    /// Sleep after so long without traffic, such as 5m; the next request wakes the service
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub sleep_after: Option<std::time::Duration>,
    /// Freeze it after so long without traffic, such as 30s, until --sleep-after stops it; the next request goes on where
    /// it stood
    #[arg(long, value_name = "SPAN", value_parser = crate::age::parse_span)]
    pub light_sleep_after: Option<std::time::Duration>,
}

/// Kinds of services that are made from an image here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Type {
    /// Reached from outside.
    Web,
    /// Not reached from outside.
    Worker,
}

/// Ways to take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// Instance by instance: each new one that takes requests replaces an old one.
    Rolling,
    /// The old version stops at once.
    Immediate,
    /// One new instance takes a tenth of the requests for a minute; when it stays healthy, the rest follows.
    Canary,
    /// The old version takes every request until the new one is there whole.
    BlueGreen,
}

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let place = Place {
        app: arguments.app.clone().unwrap_or_else(|| arguments.name.clone()),
        name: arguments.name.clone(),
    };
    let volumes = match arguments.volume.as_slice() {
        [] => None,
        named => Some(super::volumes::attached(&client, named).await?),
    };
    let build = |before| {
        let mut definition = definition::build(before, &arguments)?;
        if let Some(volumes) = volumes {
            definition.volumes = volumes;
        }
        Ok(definition)
    };
    apply(&session, &client, place, &arguments.waiting, build).await
}

/// Where a service is, by name.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its app.
    pub(crate) app: String,
    /// The service.
    pub(crate) name: String,
}

/// Makes a service, or changes the one that is there, to what `build` makes of its definition; then waits.
pub(crate) async fn apply(
    session: &Session,
    client: &Client,
    place: Place,
    waiting: &wait::Waiting,
    build: impl FnOnce(Option<DeploymentDefinition>) -> Result<DeploymentDefinition, Error>,
) -> Result<u8, Error> {
    let Place { app: app_name, name } = place;
    let app = find_app(client, &app_name).await?;
    let existing = match &app {
        Some(app) => find_service(client, text(app, "id"), &name).await?,
        None => None,
    };
    let before = match &existing {
        Some(service) => {
            let definition = super::services::latest_definition(client, service).await?;
            serde_json::from_value::<Option<DeploymentDefinition>>(definition).map_err(|source| {
                client::Error::Unexpected {
                    url: client.base().to_owned(),
                    what: format!("the service's definition cannot be read ({source})"),
                }
            })?
        }
        None => None,
    };
    let mut definition = build(before)?;
    if definition.regions.is_empty() {
        definition.regions = vec![default_region(client).await?];
    }
    let is_new = existing.is_none();
    let (service, was) = match existing {
        Some(value) => {
            let body = json!({ "definition": definition });
            let path = format!("/v1/services/{}", text(&value, "id"));
            session
                .printer
                .note(format_args!("updating service `{app_name}/{}`", name));
            let was = text(&value, "latest_deployment_id").to_owned();
            (take(&mut client.put(&path, &body).await?, "service"), was)
        }
        None => {
            let creating = format!("creating service `{app_name}/{}`", name);
            let service = match app {
                Some(app) => {
                    session.printer.note(creating);
                    let body = json!({ "app_id": text(&app, "id"), "definition": definition });
                    take(&mut client.post("/v1/services", &body).await?, "service")
                }
                None => {
                    check(client, &definition).await?;
                    session
                        .printer
                        .note(format_args!("creating app `{app_name}`\n{creating}"));
                    create_with_app(client, &app_name, &definition).await?
                }
            };
            (service, String::new())
        }
    };
    let service = Service {
        id: text(&service, "id").to_owned(),
        name: name.clone(),
        app_id: text(&service, "app_id").to_owned(),
        app: app_name,
        value: service,
    };
    let paused = matches!(text(&service.value, "status"), "PAUSED" | "PAUSING");
    let deployment_id = if paused {
        resume(session, client, &service).await?
    } else {
        text(&service.value, "latest_deployment_id").to_owned()
    };
    if deployment_id == was {
        session.printer.note(format_args!(
            "nothing changed, so no deployment was made; `tram redeploy {}` pulls the image anew",
            service.path()
        ));
    }
    if waiting.no_wait {
        session.printer.note(format_args!(
            "not waiting; look with `tram deployments get {}`",
            crate::view::short(&deployment_id)
        ));
        session.printer.value(&service.value, || deployment_id.clone())?;
        return Ok(EXIT_SUCCESS);
    }
    let before = match (is_new, deployment_id == was) {
        (true, _) => Before::Nothing,
        (false, false) => Before::Former,
        (false, true) => Before::Same,
    };
    wait::until_healthy(session, client, &service, &deployment_id, before, waiting.timeout).await
}

async fn find_app(client: &Client, name: &str) -> Result<Option<Value>, Error> {
    let apps = client.list("/v1/apps", "apps", &[("name", name)], None).await?;
    Ok(apps.into_iter().find(|app| text(app, "name") == name))
}

async fn find_service(client: &Client, app_id: &str, name: &str) -> Result<Option<Value>, Error> {
    let query = [("app_id", app_id), ("name", name)];
    let services = client.list("/v1/services", "services", &query, None).await?;
    Ok(services
        .into_iter()
        .find(|service| text(service, "name") == name && text(service, "app_id") == app_id))
}

/// Has the server check the definition before anything is made, so that a refusal names members of the definition.
async fn check(client: &Client, definition: &DeploymentDefinition) -> Result<(), Error> {
    let no_app_yet = uuid::Uuid::new_v4().to_string();
    let body = json!({ "app_id": no_app_yet, "definition": definition });
    client.post("/v1/services?dry_run=true", &body).await?;
    Ok(())
}

/// Makes an app that goes away with its last service, since nobody asked for it by itself, and its service: both or
/// neither, so that no end of this command leaves an empty app behind.
async fn create_with_app(
    client: &Client,
    name: &str,
    definition: &DeploymentDefinition,
) -> Result<Value, Error> {
    let body = json!({
        "app": { "name": name, "life_cycle": { "delete_when_empty": true } },
        "services": [{ "definition": definition }],
    });
    let mut reply = client.post("/v1/compose", &body).await?;
    match take(&mut reply, "services") {
        Value::Array(services) if services.len() == 1 => Ok(services.into_iter().next().unwrap_or_default()),
        _ => Err(client::Error::Unexpected {
            url: format!("{}/v1/compose", client.base()),
            what: "the reply has not the one service that was asked for".to_owned(),
        }
        .into()),
    }
}

/// Starts a paused service with its new definition, and gives back the deployment that does so.
async fn resume(session: &Session, client: &Client, service: &Service) -> Result<String, Error> {
    session.printer.note(format_args!(
        "resuming service `{}`, which was paused",
        service.path()
    ));
    let path = format!("/v1/services/{}", service.id);
    client.post(&format!("{path}/resume"), &json!({})).await?;
    let resumed = take(&mut client.get(&path, &[]).await?, "service");
    Ok(text(&resumed, "latest_deployment_id").to_owned())
}

/// The first region that can be used.
pub(crate) async fn default_region(client: &Client) -> Result<String, Error> {
    let reply = client.get("/v1/catalog/regions", &[("limit", "100")]).await?;
    let regions = list(&reply, "regions");
    let usable = regions
        .iter()
        .find(|region| text(region, "status") == "AVAILABLE")
        .or_else(|| regions.first());
    usable.map(|region| text(region, "id").to_owned()).ok_or_else(|| {
        Error::input(
            "the server has no region to deploy to",
            "its catalog must list one",
        )
    })
}
