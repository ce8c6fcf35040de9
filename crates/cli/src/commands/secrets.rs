//! `tram secrets list|create|get|reveal|update|delete`.

mod value;

use serde_json::{Value, json};

use self::value::Content;
use crate::{
    age::age,
    error::Error,
    printer::pairs,
    resolve::{self, SECRET},
    session::Session,
    view::{acted, short, take, text},
};

/// What to do with secrets.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the secrets, without their values
    List,
    /// Add a secret
    Create {
        /// Its name
        name: String,
        /// What it holds.
        #[command(flatten)]
        content: Box<Content>,
    },
    /// Show one secret, without its value
    Get(Target),
    /// Write the value of a secret to standard output
    Reveal(Target),
    /// Give a secret another value; services see it at their next deployment
    Update {
        /// Its name, its id, or at least eight characters of its id
        #[arg(value_name = "SECRET")]
        secret: String,
        /// Bind it to no host any more: what is deployed from now on gets the value itself
        #[arg(long, conflicts_with = "hosts")]
        unbind: bool,
        /// What it holds.
        #[command(flatten)]
        content: Box<Content>,
    },
    /// Delete a secret
    Delete(Target),
}

/// Which secret.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, its id, or at least eight characters of its id
    #[arg(value_name = "SECRET")]
    pub secret: String,
}

pub(crate) async fn run(mut session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = session.printer.clone();
    match action {
        Action::List => {
            let secrets = client.list(SECRET.path, SECRET.member, &[], None).await?;
            printer.list(
                &secrets,
                "secrets",
                &["NAME", "TYPE", "HOSTS", "UPDATED", "ID"],
                |secret| {
                    vec![
                        text(secret, "name").to_owned(),
                        kind(secret),
                        hosts(secret),
                        age(text(secret, "updated_at"), session.now()),
                        short(text(secret, "id")),
                    ]
                },
            )
        }
        Action::Create { name, content } => {
            let mut body = content.body(&mut session.host, &printer).await?;
            body.insert("name".to_owned(), json!(name));
            let secret = take(
                &mut client.post("/v1/secrets", &Value::Object(body)).await?,
                "secret",
            );
            printer.note(format_args!("created secret `{name}`"));
            printer.value(&secret, || text(&secret, "id").to_owned())
        }
        Action::Get(target) => {
            let id = resolve::id(&client, SECRET, &target.secret).await?;
            let secret = take(
                &mut client.get(&format!("/v1/secrets/{id}"), &[]).await?,
                "secret",
            );
            printer.value(&secret, || {
                pairs(&[
                    ("name", text(&secret, "name").to_owned()),
                    ("id", text(&secret, "id").to_owned()),
                    ("type", kind(&secret)),
                    ("hosts", hosts(&secret)),
                    (
                        "created",
                        age(text(&secret, "created_at"), session.now()) + " ago",
                    ),
                    (
                        "updated",
                        age(text(&secret, "updated_at"), session.now()) + " ago",
                    ),
                ])
            })
        }
        Action::Reveal(target) => {
            let id = resolve::id(&client, SECRET, &target.secret).await?;
            let mut reply = client
                .post(&format!("/v1/secrets/{id}/reveal"), &json!({}))
                .await?;
            let value = take(&mut reply, "value");
            printer.value(&value, || match &value {
                Value::String(text) => text.clone(),
                other => format!("{other:#}"),
            })
        }
        Action::Update {
            secret,
            unbind,
            content,
        } => {
            let existing = resolve::one(&client, SECRET, &secret).await?;
            let is_about_hosts = unbind || !content.hosts.is_empty();
            let mut body = if is_about_hosts && content.value.is_none() && content.from_file.is_none() {
                // The value stays what it is, and is not asked for.
                let mut body = serde_json::Map::new();
                body.insert("type".to_owned(), json!(text(&existing, "type")));
                body.insert("hosts".to_owned(), json!(content.hosts));
                body
            } else {
                content.body(&mut session.host, &printer).await?
            };
            if unbind {
                body.insert("hosts".to_owned(), json!([]));
            }
            let (was, is) = (text(&existing, "type"), body.get("type").and_then(Value::as_str));
            if is != Some(was) {
                return Err(Error::input(
                    format!(
                        "secret `{}` is of type {}",
                        text(&existing, "name"),
                        kind(&existing)
                    ),
                    "give the same `--type`, or delete it and create it anew",
                ));
            }
            body.insert("name".to_owned(), json!(text(&existing, "name")));
            let id = text(&existing, "id");
            let mut reply = client
                .patch(&format!("/v1/secrets/{id}"), &[], &Value::Object(body))
                .await?;
            printer.done(
                &take(&mut reply, "secret"),
                format_args!(
                    "updated secret `{}`; services see it after `tram redeploy`",
                    text(&existing, "name")
                ),
            )
        }
        Action::Delete(target) => {
            let id = resolve::id(&client, SECRET, &target.secret).await?;
            client.delete(&format!("/v1/secrets/{id}")).await?;
            printer.done(
                &acted("delete", &id, &target.secret),
                format_args!("deleted secret `{}`", target.secret),
            )
        }
    }
}

/// What a secret is bound to.
fn hosts(secret: &Value) -> String {
    let names = secret
        .get("hosts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let names: Vec<&str> = names.filter_map(Value::as_str).collect();
    if names.is_empty() {
        "any".to_owned()
    } else {
        names.join(", ")
    }
}

/// What a secret is, such as `simple` or `registry (github)`.
fn kind(secret: &Value) -> String {
    let plain = text(secret, "type").to_ascii_lowercase();
    let registry = value::Kind::ALL.iter().find(|kind| {
        kind.member()
            .is_some_and(|member| secret.get(member).is_some_and(Value::is_object))
    });
    match registry {
        Some(registry) => format!("{plain} ({})", registry.word()),
        None => plain,
    }
}
