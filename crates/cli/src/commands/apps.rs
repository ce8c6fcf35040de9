//! `tram apps list|get|create|delete|pause|resume`.

use serde_json::{Value, json};

use crate::{
    age::age,
    error::Error,
    printer::pairs,
    resolve::{self, APP},
    session::Session,
    view::{acted, list, short, take, text, texts},
};

/// What to do with apps.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the apps
    List,
    /// Show one app
    Get(Target),
    /// Create an app without services
    Create {
        /// Its name
        name: String,
    },
    /// Delete an app and all its services
    Delete(Target),
    /// Pause all services of an app
    Pause(Target),
    /// Start all paused services of an app
    Resume(Target),
}

/// Which app.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, its id, or at least eight characters of its id
    #[arg(value_name = "APP")]
    pub app: String,
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::List => {
            let apps = client.list(APP.path, APP.member, &[], None).await?;
            printer.list(
                &apps,
                "apps",
                &["NAME", "STATUS", "DOMAINS", "AGE", "ID"],
                |app| {
                    vec![
                        text(app, "name").to_owned(),
                        text(app, "status").to_owned(),
                        domains(app),
                        age(text(app, "created_at"), session.now()),
                        short(text(app, "id")),
                    ]
                },
            )
        }
        Action::Get(target) => {
            let id = resolve::id(&client, APP, &target.app).await?;
            let app = take(&mut client.get(&format!("/v1/apps/{id}"), &[]).await?, "app");
            printer.value(&app, || {
                pairs(&[
                    ("name", text(&app, "name").to_owned()),
                    ("id", text(&app, "id").to_owned()),
                    ("status", text(&app, "status").to_owned()),
                    ("domains", domains(&app)),
                    ("created", age(text(&app, "created_at"), session.now()) + " ago"),
                    ("messages", texts(&app, "messages").join("\n")),
                ])
            })
        }
        Action::Create { name } => {
            let app = take(
                &mut client.post("/v1/apps", &json!({ "name": name })).await?,
                "app",
            );
            printer.note(format_args!("created app `{name}`"));
            printer.value(&app, || text(&app, "id").to_owned())
        }
        Action::Delete(target) => {
            let id = resolve::id(&client, APP, &target.app).await?;
            client.delete(&format!("/v1/apps/{id}")).await?;
            printer.done(
                &acted("delete", &id, &target.app),
                format_args!("deleting app `{}` and its services", target.app),
            )
        }
        Action::Pause(target) => {
            let id = resolve::id(&client, APP, &target.app).await?;
            client.post(&format!("/v1/apps/{id}/pause"), &json!({})).await?;
            printer.done(
                &acted("pause", &id, &target.app),
                format_args!("pausing app `{}`", target.app),
            )
        }
        Action::Resume(target) => {
            let id = resolve::id(&client, APP, &target.app).await?;
            client.post(&format!("/v1/apps/{id}/resume"), &json!({})).await?;
            printer.done(
                &acted("resume", &id, &target.app),
                format_args!("resuming app `{}`", target.app),
            )
        }
    }
}

fn domains(app: &Value) -> String {
    let names: Vec<&str> = list(app, "domains")
        .iter()
        .map(|domain| text(domain, "name"))
        .collect();
    names.join(" ")
}
