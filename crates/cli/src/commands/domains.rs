//! `tram domains list|create|get|refresh|delete|attach`.

use serde_json::{Value, json};

use crate::{
    age::age,
    error::Error,
    printer::pairs,
    resolve::{self, APP, DOMAIN},
    session::Session,
    view::{acted, short, take, text, texts},
};

/// What to do with domains.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the domains
    List,
    /// Add a domain of your own
    Create {
        /// Its full name, such as shop.example.org
        name: String,
        /// The app that answers under it
        #[arg(long, value_name = "APP")]
        app: Option<String>,
    },
    /// Show one domain
    Get(Target),
    /// Check its DNS entry again
    Refresh(Target),
    /// Give the domain to an app
    Attach {
        /// Its name, its id, or at least eight characters of its id
        #[arg(value_name = "DOMAIN")]
        domain: String,
        /// The app that shall answer under it
        #[arg(value_name = "APP")]
        app: String,
    },
    /// Remove a domain
    Delete(Target),
}

/// Which domain.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, its id, or at least eight characters of its id
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::List => {
            let domains = client.list(DOMAIN.path, DOMAIN.member, &[], None).await?;
            let apps = resolve::app_names(&client).await?;
            printer.list(
                &domains,
                "domains",
                &["NAME", "TYPE", "STATUS", "APP", "AGE", "ID"],
                |domain| {
                    let app_id = text(domain, "app_id");
                    vec![
                        text(domain, "name").to_owned(),
                        text(domain, "type").to_ascii_lowercase(),
                        text(domain, "status").to_owned(),
                        apps.get(app_id).cloned().unwrap_or_else(|| short(app_id)),
                        age(text(domain, "created_at"), session.now()),
                        short(text(domain, "id")),
                    ]
                },
            )
        }
        Action::Create { name, app } => {
            let app_id = match app {
                Some(app) => resolve::id(&client, APP, &app).await?,
                None => String::new(),
            };
            let body = json!({ "name": name, "type": "CUSTOM", "app_id": app_id });
            let domain = take(&mut client.post("/v1/domains", &body).await?, "domain");
            printer.note(format_args!("created domain `{name}`"));
            advise(&session, &domain);
            printer.value(&domain, || text(&domain, "id").to_owned())
        }
        Action::Get(target) => {
            let id = resolve::id(&client, DOMAIN, &target.domain).await?;
            let domain = take(
                &mut client.get(&format!("/v1/domains/{id}"), &[]).await?,
                "domain",
            );
            printer.value(&domain, || {
                pairs(&[
                    ("name", text(&domain, "name").to_owned()),
                    ("id", text(&domain, "id").to_owned()),
                    ("type", text(&domain, "type").to_ascii_lowercase()),
                    ("status", text(&domain, "status").to_owned()),
                    ("app", text(&domain, "app_id").to_owned()),
                    ("CNAME", text(&domain, "intended_cname").to_owned()),
                    (
                        "created",
                        age(text(&domain, "created_at"), session.now()) + " ago",
                    ),
                    ("messages", texts(&domain, "messages").join("\n")),
                ])
            })
        }
        Action::Refresh(target) => {
            let id = resolve::id(&client, DOMAIN, &target.domain).await?;
            client
                .post(&format!("/v1/domains/{id}/refresh"), &json!({}))
                .await?;
            let domain = take(
                &mut client.get(&format!("/v1/domains/{id}"), &[]).await?,
                "domain",
            );
            let messages = texts(&domain, "messages");
            let reason = if messages.is_empty() {
                String::new()
            } else {
                format!(": {}", messages.join(", "))
            };
            printer.value(&domain, || {
                format!(
                    "domain `{}` is {}{reason}",
                    text(&domain, "name"),
                    text(&domain, "status")
                )
            })
        }
        Action::Attach { domain, app } => {
            let id = resolve::id(&client, DOMAIN, &domain).await?;
            let app_id = resolve::id(&client, APP, &app).await?;
            let query = [("update_mask", "app_id")];
            let mut reply = client
                .patch(&format!("/v1/domains/{id}"), &query, &json!({ "app_id": app_id }))
                .await?;
            printer.done(
                &take(&mut reply, "domain"),
                format_args!("app `{app}` answers under `{domain}`"),
            )
        }
        Action::Delete(target) => {
            let id = resolve::id(&client, DOMAIN, &target.domain).await?;
            client.delete(&format!("/v1/domains/{id}")).await?;
            printer.done(
                &acted("delete", &id, &target.domain),
                format_args!("deleting domain `{}`", target.domain),
            )
        }
    }
}

/// Says what the DNS needs before the domain works.
fn advise(session: &Session, domain: &Value) {
    let target = text(domain, "intended_cname");
    if text(domain, "status") != "ACTIVE" && !target.is_empty() {
        session.printer.note(format_args!(
            "hint: point a CNAME entry of {name} at {target}, then `tram domains refresh {name}`",
            name = text(domain, "name")
        ));
    }
}
