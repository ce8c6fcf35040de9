//! `tram models …`: what of it is a client of the API is carried out here; what works on the store of models itself goes
//! to the composition root, as images do.

mod catalog;
mod deploy;
mod engines;
mod list;
mod route;

use std::path::PathBuf;

use super::{ServerCommand, trust::Place};
use crate::{EXIT_SUCCESS, error::Error, host::Host, session::Session, settings::Settings};

/// The hub that `hf://` means when nothing else is said.
const HUB: &str = "https://huggingface.co";

/// Arguments of `models`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with models.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// As a client of the API.
    #[command(flatten)]
    Remote(RemoteAction),
    /// On the store itself.
    #[command(flatten)]
    Server(ServerAction),
}

/// What a client of the API does.
#[derive(Debug, clap::Subcommand)]
pub enum RemoteAction {
    /// Serve a model and print its URL
    ///
    /// Creates the app and the service, or updates the service when it exists: then only what is given here changes.
    /// Waits until the model is loaded.
    Deploy(Box<deploy::Arguments>),
    /// List the models that can be deployed
    #[command(visible_alias = "ls")]
    List,
    /// Show one model
    Show(list::Show),
    /// List well-known models that `pull` knows by their names
    Catalog,
    /// List what may serve models, and what each can do
    Engines,
    /// Names that lead to one model or to several
    #[command(subcommand)]
    Route(route::Action),
}

/// What is done on the store itself.
#[derive(Debug, clap::Subcommand)]
pub enum ServerAction {
    /// Take a model from a file (GGUF)
    ///
    /// Needs root, as the store is the operator's.
    Import {
        /// What to call it
        #[arg(value_name = "NAME")]
        name: String,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where the server keeps its things.
        #[command(flatten)]
        place: Place,
    },
    /// Fetch a model and take it in
    ///
    /// A download that was cut off goes on where it stood when the command is given again. A token of the hub, for what it
    /// does not show everybody, is read from the environment variable HF_TOKEN. Needs root, as the store is the operator's.
    Pull {
        /// A name of `tram models catalog`, or where it is: https://HOST/FILE.gguf, hf://ORGANIZATION/REPOSITORY/FILE.gguf[@REVISION] or oci://REGISTRY/REPOSITORY[:TAG|@DIGEST]
        #[arg(value_name = "SOURCE")]
        source: String,
        /// What to call it; without it the file's name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The checksum that the file must have, 64 hex digits
        #[arg(long, value_name = "SHA256")]
        sha256: Option<String>,
        /// The hub that hf:// means
        #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = HUB)]
        hub: String,
        /// A secret of type REGISTRY with the login of the hub (its password is the token) or of the registry
        #[arg(long, value_name = "NAME")]
        secret: Option<String>,
        /// The organization whose secret it is, where there are several
        #[arg(long, value_name = "NAME", requires = "secret")]
        organization: Option<String>,
        /// Where the server keeps its things.
        #[command(flatten)]
        place: Place,
    },
    /// Remove a model that no service uses
    ///
    /// Needs root, as the store is the operator's.
    Rm {
        /// The model
        #[arg(value_name = "NAME")]
        name: String,
        /// Where the server keeps its things.
        #[command(flatten)]
        place: Place,
    },
}

/// The variable that holds the hub's token, as the hub's own tools have it.
const HUB_TOKEN: &str = "HF_TOKEN";

/// A token of the hub. Not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(pub String);

impl std::fmt::Debug for HubToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("HubToken")
    }
}

/// A secret by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    /// Its own.
    pub secret: String,
    /// Its organization's; needed where there are several.
    pub organization: Option<String>,
}

/// What to do on the store of models, with the settings apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelsAction {
    /// Take a model from a file.
    Import {
        /// What to call it.
        name: String,
        /// The file.
        file: PathBuf,
    },
    /// Fetch a model.
    Pull {
        /// Where it is.
        source: String,
        /// What to call it.
        name: Option<String>,
        /// What it must be.
        sha256: Option<String>,
        /// The hub.
        hub: String,
        /// What the hub is shown.
        token: Option<HubToken>,
        /// Which secret has the login of the hub or of the registry.
        secret: Option<SecretName>,
    },
    /// Remove a model.
    Rm {
        /// Which.
        name: String,
    },
}

/// Resolves the settings of what the composition root does.
pub(crate) fn resolve(action: ServerAction, host: &Host) -> Result<ServerCommand, Error> {
    let (place, action) = match action {
        ServerAction::Import { name, file, place } => (place, ModelsAction::Import { name, file }),
        ServerAction::Pull {
            source,
            name,
            sha256,
            hub,
            secret,
            organization,
            place,
        } => (
            place,
            ModelsAction::Pull {
                source,
                name,
                sha256,
                hub,
                token: host
                    .variable(HUB_TOKEN)
                    .filter(|token| !token.is_empty())
                    .map(|token| HubToken(token.to_owned())),
                secret: secret.map(|secret| SecretName { secret, organization }),
            },
        ),
        ServerAction::Rm { name, place } => (place, ModelsAction::Rm { name }),
    };
    Ok(ServerCommand::Models {
        settings: Settings::resolve(&place.flags(), &host.variables)?,
        action,
    })
}

pub(crate) async fn run(session: Session, action: RemoteAction) -> Result<u8, Error> {
    match action {
        RemoteAction::Deploy(arguments) => return Box::pin(deploy::run(session, *arguments)).await,
        RemoteAction::Catalog => catalog::run(&session).await?,
        RemoteAction::Route(action) => route::run(&session, action).await?,
        RemoteAction::Engines => engines::run(&session).await?,
        RemoteAction::List => list::run(&session).await?,
        RemoteAction::Show(show) => list::show(&session, &show).await?,
    }
    Ok(EXIT_SUCCESS)
}
