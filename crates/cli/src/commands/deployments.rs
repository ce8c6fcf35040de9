//! `tram deployments list|get|cancel`.

use serde_json::json;

use super::services::image;
use crate::{
    age::age,
    error::Error,
    printer::pairs,
    resolve::{self, DEPLOYMENT},
    session::Session,
    view::{number, short, take, text, texts},
};

/// How many deployments are listed when nothing says otherwise: a screen of them.
const LIST_ITEMS: usize = 20;

/// What to do with deployments.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List deployments, newest first
    List {
        /// Only those of this service
        #[arg(value_name = "SERVICE")]
        service: Option<String>,
        /// List at most so many
        #[arg(long, value_name = "N", default_value_t = LIST_ITEMS)]
        limit: usize,
    },
    /// Show one deployment
    Get(Target),
    /// Stop a deployment that has not started yet
    Cancel(Target),
}

/// Which deployment.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its id, or at least eight characters of it
    #[arg(value_name = "DEPLOYMENT")]
    pub deployment: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::List { service, limit } => {
            let service = match service {
                Some(given) => Some(resolve::service(&client, &given).await?),
                None => None,
            };
            let query: Vec<(&str, &str)> = service
                .iter()
                .map(|service| ("service_id", service.id.as_str()))
                .collect();
            let deployments = client
                .list(DEPLOYMENT.path, DEPLOYMENT.member, &query, Some(limit))
                .await?;
            let names = resolve::services(&client).await?;
            printer.list(
                &deployments,
                "deployments",
                &["ID", "SERVICE", "VERSION", "STATUS", "IMAGE", "AGE"],
                |deployment| {
                    let service_id = text(deployment, "service_id");
                    let definition = deployment.get("definition").cloned().unwrap_or_default();
                    vec![
                        short(text(deployment, "id")),
                        names
                            .iter()
                            .find(|service| service.id == service_id)
                            .map_or_else(|| short(service_id), resolve::Service::path),
                        number(deployment, "version").to_string(),
                        text(deployment, "status").to_owned(),
                        image(&definition),
                        age(text(deployment, "created_at"), session.now()),
                    ]
                },
            )
        }
        Action::Get(target) => {
            let id = resolve::id(&client, DEPLOYMENT, &target.deployment).await?;
            let deployment = take(
                &mut client.get(&format!("/v1/deployments/{id}"), &[]).await?,
                "deployment",
            );
            let definition = deployment.get("definition").cloned().unwrap_or_default();
            printer.value(&deployment, || {
                pairs(&[
                    ("id", text(&deployment, "id").to_owned()),
                    ("service", text(&deployment, "service_id").to_owned()),
                    ("version", number(&deployment, "version").to_string()),
                    ("status", text(&deployment, "status").to_owned()),
                    ("image", image(&definition)),
                    (
                        "created",
                        age(text(&deployment, "created_at"), session.now()) + " ago",
                    ),
                    ("messages", texts(&deployment, "messages").join("\n")),
                ])
            })
        }
        Action::Cancel(target) => {
            let id = resolve::id(&client, DEPLOYMENT, &target.deployment).await?;
            client
                .post(&format!("/v1/deployments/{id}/cancel"), &json!({}))
                .await?;
            printer.done(
                &json!({ "id": id, "action": "cancel" }),
                format_args!("canceling deployment {}", short(&id)),
            )
        }
    }
}
