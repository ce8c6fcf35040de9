//! Waiting for a deployment, and what is said at its end. Used by `deploy` and `redeploy`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tram_types::status::DeploymentStatus;

use super::progress::{Phase, Progress};
use crate::{
    EXIT_INTERRUPTED, EXIT_SUCCESS, age,
    client::Client,
    commands::logs,
    error::Error,
    resolve::Service,
    session::Session,
    view::{list, number, short, take, text, texts},
};

/// How often the deployment is looked at: often enough that a person feels no delay.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How many lines of log a failure shows.
const LOG_LINES: usize = 20;

/// Arguments of commands that wait.
#[derive(Debug, Clone, clap::Args)]
pub struct Waiting {
    /// Wait until the deployment is healthy; this is the default
    #[arg(long, overrides_with = "no_wait")]
    pub wait: bool,
    /// Do not wait: come back when the server has taken the order
    #[arg(long, overrides_with = "wait")]
    pub no_wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = age::parse_span)]
    pub timeout: Duration,
}

/// What was there before the deployment that is waited for, which decides how it is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: the service is new.
    Nothing,
    /// The service with another definition.
    Former,
    /// The service with the same definition.
    Same,
}

/// How waiting ended.
enum End {
    Healthy(Value),
    Failed(Value),
    Late,
    Interrupted,
}

/// What was last seen of a deployment.
struct Seen {
    status: String,
    messages: Vec<String>,
}

/// Waits until deployment `id` of `service` is healthy, then writes its URL to standard output.
pub(crate) async fn until_healthy(
    session: &Session,
    client: &Client,
    service: &Service,
    id: &str,
    before: Before,
    timeout: Duration,
) -> Result<u8, Error> {
    let started = Instant::now();
    let mut progress = Progress::new(&session.printer);
    let mut seen = Seen {
        status: "PENDING".to_owned(),
        messages: Vec::new(),
    };
    let end = tokio::select! {
        end = watch(client, id, started + timeout, &mut progress, &mut seen) => end?,
        () = session.host.interrupt.wait() => End::Interrupted,
    };
    drop(progress);
    match end {
        End::Healthy(deployment) => {
            session
                .printer
                .note(format_args!("healthy after {}", age::span(started.elapsed())));
            announce(session, client, service, &deployment).await?;
            Ok(EXIT_SUCCESS)
        }
        End::Failed(deployment) => Err(failure(client, service, &deployment).await),
        End::Late => Err(Error::NotReady {
            service: service.path(),
            short: short(id),
            status: seen.status,
            messages: seen.messages,
            after: timeout,
        }),
        End::Interrupted => {
            session.printer.note(format_args!(
                "stopped waiting; the deployment goes on\nhint: look with `tram deployments get {}`{}",
                short(id),
                undo(service, id, before, &seen.status)
            ));
            Ok(EXIT_INTERRUPTED)
        }
    }
}

/// How a deployment on its way is undone; empty when there is nothing to go back to.
fn undo(service: &Service, id: &str, before: Before, status: &str) -> String {
    // Later the server refuses to cancel, and deleting a service takes away what serves.
    let is_cancelable =
        serde_json::from_value(status.into()).is_ok_and(|status: DeploymentStatus| status.is_cancelable());
    match before {
        Before::Nothing => format!(", undo with `tram delete {}`", service.path()),
        _ if is_cancelable => format!(", undo with `tram deployments cancel {}`", short(id)),
        Before::Former => ", undo by deploying the former image again".to_owned(),
        Before::Same => String::new(),
    }
}

async fn watch(
    client: &Client,
    id: &str,
    deadline: Instant,
    progress: &mut Progress,
    seen: &mut Seen,
) -> Result<End, Error> {
    let path = format!("/v1/deployments/{id}");
    let mut lost = false;
    loop {
        match client.get(&path, &[]).await {
            Ok(mut reply) => {
                if lost {
                    progress.say("the server is back");
                    lost = false;
                }
                let deployment = take(&mut reply, "deployment");
                text(&deployment, "status").clone_into(&mut seen.status);
                match seen.status.as_str() {
                    "HEALTHY" | "DEGRADED" | "SLEEPING" => return Ok(End::Healthy(deployment)),
                    // On its way to its end: the message that says why comes with the end.
                    "ERRORING" | "CANCELING" | "STOPPING" => {}
                    on_its_way => match Phase::of(on_its_way) {
                        Some(phase) => progress.enter(phase),
                        None => return Ok(End::Failed(deployment)),
                    },
                }
                seen.messages = texts(&deployment, "messages");
                progress.tell(seen.messages.last().map_or("", String::as_str));
            }
            // The work goes on without us: a server that restarts is waited for.
            Err(error) if error.is_passing() => {
                if !lost {
                    progress.say(&format!("{error}; still waiting"));
                    lost = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Ok(End::Late);
        }
        sleep(POLL_INTERVAL.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

async fn announce(
    session: &Session,
    client: &Client,
    service: &Service,
    deployment: &Value,
) -> Result<(), Error> {
    let mut reply = client.get(&format!("/v1/apps/{}", service.app_id), &[]).await?;
    let app = take(&mut reply, "app");
    let urls = urls(&app, deployment);
    if text(deployment, "status") == "DEGRADED" {
        session.printer.note("some instances are not healthy");
    }
    if session.printer.output() == crate::Output::Table {
        if urls.is_empty() {
            session
                .printer
                .note(format_args!("`{}` is not reached from outside", service.path()));
        }
        for url in &urls {
            session.printer.data(url)?;
        }
        return Ok(());
    }
    let value = json!({
        "app": service.app,
        "service": service.name,
        "service_id": service.id,
        "deployment_id": text(deployment, "id"),
        "status": text(deployment, "status"),
        "urls": urls,
    });
    session.printer.value(&value, String::new)
}

/// Where a deployment is reached: by its first route under the app's first domain that works, and by TCP.
fn urls(app: &Value, deployment: &Value) -> Vec<String> {
    let mut urls = Vec::new();
    let definition = deployment.get("definition").cloned().unwrap_or_default();
    let domains = list(app, "domains");
    let domain = domains
        .iter()
        .find(|domain| text(domain, "status") == "ACTIVE")
        .or_else(|| domains.first());
    if let (Some(domain), Some(route)) = (domain, list(&definition, "routes").first()) {
        let path = text(route, "path").trim_end_matches('/');
        // A server whose HTTPS is not on the usual port says where it is.
        let base = match text(domain, "url") {
            "" => format!("https://{}", text(domain, "name")),
            url => url.trim_end_matches('/').to_owned(),
        };
        urls.push(format!("{base}{path}"));
    }
    let metadata = deployment.get("metadata").cloned().unwrap_or_default();
    for port in list(&metadata, "proxy_ports") {
        urls.push(format!(
            "tcp://{}:{}",
            text(port, "host"),
            number(port, "public_port")
        ));
    }
    urls
}

async fn failure(client: &Client, service: &Service, deployment: &Value) -> Error {
    let id = text(deployment, "id");
    // Without the log the failure is still told.
    let log_lines = logs::last(client, ("deployment_id", id), LOG_LINES)
        .await
        .unwrap_or_default();
    let still_serving = match client.get(&format!("/v1/services/{}", service.id), &[]).await {
        Ok(mut reply) => {
            let service = take(&mut reply, "service");
            let active = text(&service, "active_deployment_id");
            !active.is_empty() && active != id
        }
        Err(_) => false,
    };
    Error::DeploymentFailed {
        service: service.path(),
        short: short(id),
        status: text(deployment, "status").to_owned(),
        messages: texts(deployment, "messages"),
        log_lines,
        still_serving,
    }
}
