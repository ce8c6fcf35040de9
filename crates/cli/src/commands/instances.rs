//! `tram instances list|get`.

use crate::{
    age::age,
    error::Error,
    printer::pairs,
    resolve::{self, INSTANCE},
    session::Session,
    view::{number, short, take, text, texts},
};

/// States of instances that are not over yet, sleep included.
const LIVE: &[&str] = &[
    "ALLOCATING",
    "STARTING",
    "HEALTHY",
    "UNHEALTHY",
    "STOPPING",
    "SLEEPING",
];

/// What to do with instances.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List instances
    List {
        /// Only those of this service
        #[arg(value_name = "SERVICE")]
        service: Option<String>,
        /// Include those that have ended
        #[arg(long, short)]
        all: bool,
    },
    /// Show one instance
    Get {
        /// Its id, or at least eight characters of it
        #[arg(value_name = "INSTANCE")]
        instance: String,
    },
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    match action {
        Action::List { service, all } => {
            let service = match service {
                Some(given) => Some(resolve::service(&client, &given).await?),
                None => None,
            };
            let mut query: Vec<(&str, &str)> = service
                .iter()
                .map(|service| ("service_id", service.id.as_str()))
                .collect();
            if !all {
                query.extend(LIVE.iter().map(|status| ("statuses", *status)));
            }
            let instances = client.list(INSTANCE.path, INSTANCE.member, &query, None).await?;
            let names = resolve::services(&client).await?;
            session.printer.list(
                &instances,
                "instances",
                &["ID", "SERVICE", "STATUS", "TYPE", "REGION", "AGE", "MESSAGE"],
                |instance| {
                    let service_id = text(instance, "service_id");
                    vec![
                        short(text(instance, "id")),
                        names
                            .iter()
                            .find(|service| service.id == service_id)
                            .map_or_else(|| short(service_id), resolve::Service::path),
                        text(instance, "status").to_owned(),
                        text(instance, "type").to_owned(),
                        text(instance, "region").to_owned(),
                        age(text(instance, "created_at"), session.now()),
                        texts(instance, "messages").into_iter().next().unwrap_or_default(),
                    ]
                },
            )
        }
        Action::Get { instance } => {
            let id = resolve::id(&client, INSTANCE, &instance).await?;
            let instance = take(
                &mut client.get(&format!("/v1/instances/{id}"), &[]).await?,
                "instance",
            );
            session.printer.value(&instance, || {
                pairs(&[
                    ("id", text(&instance, "id").to_owned()),
                    ("service", text(&instance, "service_id").to_owned()),
                    ("deployment", text(&instance, "xyz_deployment_id").to_owned()),
                    ("status", text(&instance, "status").to_owned()),
                    ("type", text(&instance, "type").to_owned()),
                    ("region", text(&instance, "region").to_owned()),
                    ("replica", number(&instance, "replica_index").to_string()),
                    (
                        "created",
                        age(text(&instance, "created_at"), session.now()) + " ago",
                    ),
                    ("messages", texts(&instance, "messages").join("\n")),
                ])
            })
        }
    }
}
