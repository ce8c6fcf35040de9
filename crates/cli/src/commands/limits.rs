//! `tram limits list|set|remove`: what may be asked of models.

use serde_json::{Value, json};
use tram_types::inference::Priority;

use crate::{
    client::Client,
    error::Error,
    resolve::{self, Kind, TOKEN},
    session::Session,
    view::{acted, number, take, text},
};

/// Projects; no command lists them.
const PROJECT: Kind = Kind {
    noun: "project",
    path: "/v1/projects",
    member: "projects",
    list: "tram usage --by project",
};

/// What to do with limits.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the limits, and what was used of them this month
    #[command(visible_alias = "ls")]
    List,
    /// Set a limit; what is not given stays
    Set {
        /// Whose.
        #[command(flatten)]
        subject: Subject,
        /// Questions in a minute; 0 limits nothing
        #[arg(long, value_name = "NUMBER")]
        requests_per_minute: Option<u32>,
        /// Tokens of prompts and answers in a minute; 0 limits nothing
        #[arg(long, value_name = "NUMBER")]
        tokens_per_minute: Option<u32>,
        /// Tokens of prompts and answers in a calendar month of UTC; 0 limits nothing
        #[arg(long, value_name = "NUMBER")]
        tokens_per_month: Option<u64>,
        /// How urgent the questions of a token are: low, normal or high
        #[arg(long, value_name = "PRIORITY")]
        priority: Option<Priority>,
    },
    /// Take a limit away
    #[command(visible_alias = "rm")]
    Remove {
        /// Whose.
        #[command(flatten)]
        subject: Subject,
    },
}

/// What is limited.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// An API token: its name, its id, or at least eight characters of its id
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The services of a project: its name, its id, or at least eight characters of its id
    #[arg(long, value_name = "PROJECT")]
    pub project: Option<String>,
    /// Everybody in the organization
    #[arg(long)]
    pub organization: bool,
}

impl Subject {
    /// Its id, and what to call it.
    async fn find(&self, client: &Client) -> Result<(String, String), Error> {
        if let Some(token) = &self.token {
            let id = resolve::id(client, TOKEN, token).await?;
            return Ok((id, format!("token `{token}`")));
        }
        if let Some(project) = &self.project {
            let id = resolve::id(client, PROJECT, project).await?;
            return Ok((id, format!("project `{project}`")));
        }
        let mut reply = client.get("/v1/account/organization", &[]).await?;
        let organization = take(&mut reply, "organization");
        Ok((
            text(&organization, "id").to_owned(),
            format!("organization `{}`", text(&organization, "name")),
        ))
    }
}

pub(crate) async fn run(session: Session, action: Action) -> Result<(), Error> {
    let client = session.client()?;
    match action {
        Action::List => list(&session, &client).await,
        Action::Set {
            subject,
            requests_per_minute,
            tokens_per_minute,
            tokens_per_month,
            priority,
        } => {
            let (id, name) = subject.find(&client).await?;
            let mut limit = known(&client, &id).await?;
            for (member, given) in [
                ("requests_per_minute", requests_per_minute.map(u64::from)),
                ("tokens_per_minute", tokens_per_minute.map(u64::from)),
                ("tokens_per_month", tokens_per_month),
            ] {
                if let Some(given) = given {
                    limit[member] = json!(given);
                }
            }
            if let Some(priority) = priority {
                limit["priority"] = json!(priority.as_str());
            }
            let mut reply = client.put(&format!("/v1/model_limits/{id}"), &limit).await?;
            let said = format!("limited {name}");
            session.printer.done(&take(&mut reply, "limit"), said)
        }
        Action::Remove { subject } => {
            let (id, name) = subject.find(&client).await?;
            client.delete(&format!("/v1/model_limits/{id}")).await?;
            let said = format!("took the limit of {name} away");
            session.printer.done(&acted("remove", &id, &name), said)
        }
    }
}

/// The limit as it is, as far as it can be set.
async fn known(client: &Client, id: &str) -> Result<Value, Error> {
    let mut reply = client.get("/v1/model_limits", &[]).await?;
    let limits = take(&mut reply, "limits");
    let found = limits
        .as_array()
        .and_then(|limits| limits.iter().find(|limit| text(limit, "id") == id));
    Ok(match found {
        None => json!({}),
        Some(limit) => json!({
            "requests_per_minute": number(limit, "requests_per_minute"),
            "tokens_per_minute": number(limit, "tokens_per_minute"),
            "tokens_per_month": number(limit, "tokens_per_month"),
            "priority": text(limit, "priority"),
        }),
    })
}

async fn list(session: &Session, client: &Client) -> Result<(), Error> {
    let mut reply = client.get("/v1/model_limits", &[]).await?;
    let limits = take(&mut reply, "limits");
    let limits = limits.as_array().map_or(&[][..], Vec::as_slice);
    let most = |limit: &Value, member: &str| match number(limit, member) {
        0 => "-".to_owned(),
        most => most.to_string(),
    };
    let header = [
        "OF",
        "NAME",
        "REQUESTS/MIN",
        "TOKENS/MIN",
        "TOKENS/MONTH",
        "USED",
        "PRIORITY",
    ];
    session.printer.list(limits, "limits", &header, |limit| {
        let scope = match text(limit, "scope") {
            "credential" => "token",
            scope => scope,
        };
        vec![
            scope.to_owned(),
            text(limit, "name").to_owned(),
            most(limit, "requests_per_minute"),
            most(limit, "tokens_per_minute"),
            most(limit, "tokens_per_month"),
            number(limit, "tokens_this_month").to_string(),
            text(limit, "priority").to_owned(),
        ]
    })
}
