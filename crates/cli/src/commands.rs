//! Every command: one file each, named after it.
//!
//! [`RemoteCommand`]s are carried out here; [`ServerArguments`] become [`ServerCommand`]s for the composition root.

mod admin;
mod apps;
mod capture;
mod catalog;
mod chat;
mod completion;
mod context;
mod delete;
mod deploy;
mod deployments;
mod domains;
mod events;
mod exec;
mod images;
mod instances;
mod limits;
mod login;
mod logs;
mod mcp;
pub(crate) mod models;
mod pause;
mod pools;
mod redeploy;
mod resume;
mod sandbox;
mod scale;
mod secrets;
mod services;
mod simulate;
mod snapshots;
mod tokens;
mod trust;
mod usage;
mod version;
mod volumes;

use std::ffi::OsString;

use clap::Subcommand;

pub use self::{
    admin::AdminAction,
    images::ImagesAction,
    models::{HubToken, ModelsAction, SecretName},
    simulate::Arguments as SimulateArguments,
    trust::TrustAction,
};
use crate::{EXIT_SUCCESS, error::Error, host::Host, session::Session, settings::Flags, settings::Settings};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Something this crate does.
    #[command(flatten)]
    Remote(RemoteCommand),
    /// Something the composition root does.
    #[command(flatten)]
    Server(ServerArguments),
    /// Models: what answers questions and writes
    Models(models::Arguments),
}

/// Commands that are clients of the API, or of nothing.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Deploy an image and print its URL
    ///
    /// Creates the app and the service, or updates the service when it exists: then only what is given here
    /// changes. Waits until the deployment is healthy.
    Deploy(Box<deploy::Arguments>),
    /// Apps: what groups services under one domain
    #[command(subcommand)]
    Apps(apps::Action),
    /// Services: what runs
    #[command(subcommand)]
    Services(services::Action),
    /// Deployments: the versions of a service
    #[command(subcommand)]
    Deployments(deployments::Action),
    /// Instances: the running copies of a service
    #[command(subcommand)]
    Instances(instances::Action),
    /// Show what a service writes
    Logs(logs::Arguments),
    /// Run a command inside a running instance
    Exec(exec::Arguments),
    /// Sandboxes: isolated computers for code that nobody has read
    #[command(subcommand)]
    Sandbox(sandbox::Action),
    /// Snapshots: disks of sandboxes that were kept, for others to start from
    #[command(subcommand)]
    Snapshots(snapshots::Action),
    /// Pools: services that are kept ready, to be taken at once
    #[command(subcommand)]
    Pools(pools::Action),
    /// Volumes: what is kept when an instance is gone
    #[command(subcommand)]
    Volumes(volumes::Action),
    /// Serve sandboxes to agents as tools of the Model Context Protocol
    ///
    /// Without options it speaks over its standard input and output, as agents start it. It works with the server and
    /// the token of the context. More: docs/guide/agents.md.
    Mcp(mcp::Arguments),
    /// Talk to a model
    ///
    /// With a question it answers that one and ends; without, you type them, and it remembers what was said. How fast it
    /// was stands at the end of each answer.
    Chat(chat::Arguments),
    /// Show what questions to models cost
    Usage(usage::Arguments),
    /// Limits: what may be asked of models
    #[command(subcommand)]
    Limits(limits::Action),
    /// API tokens: who may do what
    #[command(subcommand)]
    Tokens(tokens::Action),
    /// Show what happened to a service
    Events(events::Arguments),
    /// Set how many instances a service has
    Scale(scale::Arguments),
    /// Stop a service and keep its definition
    Pause(services::Target),
    /// Start a paused service
    Resume(services::Target),
    /// Deploy the newest definition of a service again
    Redeploy(redeploy::Arguments),
    /// Delete a service
    Delete(services::Target),
    /// Secrets: values that definitions refer to by name
    #[command(subcommand)]
    Secrets(secrets::Action),
    /// Domains of apps
    #[command(subcommand)]
    Domains(domains::Action),
    /// List the instance types of the server, with their GPUs
    Catalog,
    /// Check a token and keep it for this server
    Login(login::Arguments),
    /// Contexts: which server the commands speak to
    #[command(subcommand)]
    Context(context::Action),
    /// Write a completion script for a shell
    Completion(completion::Arguments),
    /// Show the version of this program
    Version,
    /// What of `models` is a client's; [`Command::Models`] is how it is typed.
    #[command(skip)]
    Models(models::RemoteAction),
}

/// Commands of the composition root, as typed.
#[derive(Debug, Subcommand)]
pub enum ServerArguments {
    /// Run the whole cloud on this machine
    ///
    /// Needs root, since it makes namespaces, cgroups and mounts for instances. The first start prints an API
    /// token once and keeps it as a context for the other commands.
    Up(Box<Flags>),
    /// Say what this machine can and cannot do, and how to mend it
    Doctor(Box<Flags>),
    /// Make this machine trust the HTTPS certificates of its own cloud
    Trust(trust::Arguments),
    /// Images kept on this machine
    Images(images::Arguments),
    /// For the operator of a running server, as root: tokens, keys, backups
    Admin(admin::Arguments),
    /// Replay a trace of a real cloud against policies of sleep and scaling, and compare them
    ///
    /// Needs no running server and changes nothing. What is modelled: docs/concepts/simulator.md.
    Simulate(simulate::Arguments),
    /// Parent of instances; started by `tram up`
    #[command(hide = true)]
    Supervise(Raw),
    /// Data plane; started by `tram up`
    #[command(hide = true)]
    Edge(Raw),
}

/// Arguments between our own processes, which the composition root both writes and reads.
#[derive(Debug, clap::Args)]
pub struct Raw {
    /// As they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub arguments: Vec<OsString>,
}

/// Commands of the composition root, with their settings resolved.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerCommand {
    /// Run the whole cloud on this machine.
    Up(Settings),
    /// Say what this machine can do.
    Doctor {
        /// The settings.
        settings: Settings,
        /// Why the file of settings was left out, if it was.
        unread: Option<String>,
    },
    /// Put the local authority into the system's store, take it out, or show it.
    Trust {
        /// The settings.
        settings: Settings,
        /// What to do with it.
        action: TrustAction,
    },
    /// Work on the store of images.
    Images {
        /// The settings.
        settings: Settings,
        /// What to do.
        action: ImagesAction,
    },
    /// Work on the store of models.
    Models {
        /// The settings.
        settings: Settings,
        /// What to do.
        action: ModelsAction,
    },
    /// Ask something of the running control plane.
    Admin {
        /// The settings.
        settings: Settings,
        /// What to ask.
        action: AdminAction,
    },
    /// Replay a trace.
    Simulate(SimulateArguments),
    /// The parent of instances, with the arguments of whoever started it.
    Supervise(Vec<OsString>),
    /// The data plane, with the arguments of whoever started it.
    Edge(Vec<OsString>),
}

/// Resolves the settings of a command of the composition root.
pub(crate) fn resolve_server(command: ServerArguments, host: &Host) -> Result<ServerCommand, Error> {
    let settings = |flags: &Flags| Settings::resolve(flags, &host.variables);
    Ok(match command {
        ServerArguments::Up(flags) => ServerCommand::Up(settings(&flags)?),
        ServerArguments::Doctor(flags) => {
            let (settings, unread) = Settings::resolve_what_can_be_read(&flags, &host.variables)?;
            ServerCommand::Doctor {
                settings,
                unread: unread.map(|error| error.to_string()),
            }
        }
        ServerArguments::Trust(trust) => ServerCommand::Trust {
            settings: settings(&trust.place.flags())?,
            action: trust.action(),
        },
        ServerArguments::Images(images) => ServerCommand::Images {
            settings: settings(&images.place.flags())?,
            action: images.action,
        },
        ServerArguments::Admin(admin) => ServerCommand::Admin {
            settings: settings(&admin.place.flags())?,
            action: admin.action,
        },
        ServerArguments::Simulate(arguments) => ServerCommand::Simulate(arguments),
        ServerArguments::Supervise(raw) => ServerCommand::Supervise(raw.arguments),
        ServerArguments::Edge(raw) => ServerCommand::Edge(raw.arguments),
    })
}

/// Carries out a command that is ours. Boxed, for the states of all commands together are large.
pub(crate) async fn run_remote(command: RemoteCommand, session: Session) -> Result<u8, Error> {
    match command {
        RemoteCommand::Deploy(arguments) => return Box::pin(deploy::run(session, *arguments)).await,
        RemoteCommand::Sandbox(action) => return Box::pin(sandbox::run(session, action)).await,
        RemoteCommand::Mcp(arguments) => return Box::pin(mcp::run(session, arguments)).await,
        RemoteCommand::Exec(arguments) => return Box::pin(exec::run(session, arguments)).await,
        RemoteCommand::Logs(arguments) => return Box::pin(logs::run(session, arguments)).await,
        RemoteCommand::Apps(action) => apps::run(session, action).await?,
        RemoteCommand::Services(action) => return Box::pin(services::run(session, action)).await,
        RemoteCommand::Deployments(action) => deployments::run(session, action).await?,
        RemoteCommand::Instances(action) => instances::run(session, action).await?,
        RemoteCommand::Chat(arguments) => return Box::pin(chat::run(session, arguments)).await,
        RemoteCommand::Usage(arguments) => Box::pin(usage::run(session, arguments)).await?,
        RemoteCommand::Limits(action) => Box::pin(limits::run(session, action)).await?,
        RemoteCommand::Tokens(action) => Box::pin(tokens::run(session, action)).await?,
        RemoteCommand::Events(arguments) => events::run(session, arguments).await?,
        RemoteCommand::Scale(arguments) => scale::run(session, arguments).await?,
        RemoteCommand::Pause(target) => pause::run(session, target).await?,
        RemoteCommand::Resume(target) => resume::run(session, target).await?,
        RemoteCommand::Redeploy(arguments) => return Box::pin(redeploy::run(session, arguments)).await,
        RemoteCommand::Delete(target) => delete::run(session, target).await?,
        RemoteCommand::Secrets(action) => Box::pin(secrets::run(session, action)).await?,
        RemoteCommand::Pools(action) => Box::pin(pools::run(session, action)).await?,
        RemoteCommand::Volumes(action) => Box::pin(volumes::run(session, action)).await?,
        RemoteCommand::Snapshots(action) => Box::pin(snapshots::run(session, action)).await?,
        RemoteCommand::Domains(action) => Box::pin(domains::run(session, action)).await?,
        RemoteCommand::Catalog => Box::pin(catalog::run(session)).await?,
        RemoteCommand::Login(arguments) => Box::pin(login::run(session, arguments)).await?,
        RemoteCommand::Context(action) => context::run(&session, action)?,
        RemoteCommand::Completion(arguments) => completion::run(&session, arguments)?,
        RemoteCommand::Version => version::run(&session)?,
        RemoteCommand::Models(action) => return Box::pin(models::run(session, action)).await,
    }
    Ok(EXIT_SUCCESS)
}
