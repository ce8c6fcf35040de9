//! `tram tokens list|create|delete`: API tokens of the organization.

use std::time::Duration;

use serde_json::json;

use crate::{
    age::{self, age},
    error::Error,
    resolve::{self, TOKEN},
    session::Session,
    view::{acted, short, take, text},
};

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the tokens, without what they are made of
    #[command(visible_alias = "ls")]
    List,
    /// Make a token and write it to standard output; it is shown this once
    Create {
        /// What to call it
        name: String,
        /// What it may do
        #[arg(long, value_enum, value_name = "ROLE", default_value = "models")]
        role: Role,
        /// After how long it stops to work, such as 90d; never when left out
        #[arg(long, value_name = "SPAN", value_parser = age::parse_span)]
        expires_in: Option<Duration>,
    },
    /// Delete a token: it stops to work at once
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name, its id, or at least eight characters of its id
        #[arg(value_name = "TOKEN")]
        token: String,
    },
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Ask models, and nothing else.
    Models,
    /// Look at all but secrets.
    ReadOnly,
    /// Everything.
    Owner,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Models => "MODELS",
            Self::ReadOnly => "READ_ONLY",
            Self::Owner => "OWNER",
        }
    }
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    let printer = &session.printer;
    match action {
        Action::List => {
            let tokens = client.list(TOKEN.path, TOKEN.member, &[], None).await?;
            let header = ["NAME", "ROLE", "AGE", "EXPIRES", "ID"];
            printer.list(&tokens, "tokens", &header, |token| {
                let expires = match text(token, "expires_at") {
                    "" => "never",
                    time => time,
                };
                vec![
                    text(token, "name").to_owned(),
                    text(token, "role").to_ascii_lowercase().replace('_', "-"),
                    age(text(token, "created_at"), session.now()),
                    expires.to_owned(),
                    short(text(token, "id")),
                ]
            })
        }
        Action::Create {
            name,
            role,
            expires_in,
        } => {
            let mut body = json!({ "name": name, "role": role.as_str(), "type": "ORGANIZATION" });
            if let Some(span) = expires_in {
                body["expires_at"] = json!(session.now().plus(span));
            }
            let mut reply = client.post(TOKEN.path, &body).await?;
            let token = take(&mut reply, "credential");
            printer.note(format_args!("made token `{name}`; it is shown this once"));
            printer.value(&token, || text(&token, "token").to_owned())
        }
        Action::Delete { token } => {
            let id = resolve::id(&client, TOKEN, &token).await?;
            client.delete(&format!("{}/{id}", TOKEN.path)).await?;
            printer.done(
                &acted("delete", &id, &token),
                format_args!("deleted token `{token}`"),
            )
        }
    }
}
