//! The value of a secret: where it is read from, and the shape that its type has on the wire.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use crate::{error::Error, host::Host, printer::Printer};

/// Largest value that is read: key files are a few KiB; the limit stops a wrong file.
const VALUE_MAX_BYTES: u64 = 1024 * 1024;

/// What a secret holds.
#[derive(Debug, clap::Args)]
pub struct Content {
    /// The value or password itself; mind that others can see it in the list of processes
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "from_file",
        allow_hyphen_values = true
    )]
    pub value: Option<String>,
    /// Read the value from this file; without it and --value standard input is read
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
    /// Bind it to this host name: programs get a placeholder, and HTTPS requests to the host the value. May be given
    /// several times
    #[arg(long = "bind-host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// What it is
    #[arg(long, value_enum, value_name = "TYPE", default_value = "simple")]
    pub r#type: Kind,
    /// User of the registry
    #[arg(long, value_name = "NAME")]
    pub registry_username: Option<String>,
    /// Address of the registry, for types private and gcp
    #[arg(long, value_name = "URL")]
    pub registry_url: Option<String>,
    /// Name of the registry, for type azure
    #[arg(long, value_name = "NAME")]
    pub registry_name: Option<String>,
}

/// Types of secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A value for definitions.
    Simple,
    /// Credentials of Docker Hub.
    DockerHub,
    /// Credentials of a registry of your own.
    Private,
    /// Credentials of GitHub's registry.
    Github,
    /// Credentials of GitLab's registry.
    Gitlab,
    /// Credentials of DigitalOcean's registry.
    DigitalOcean,
    /// Key file of Google's registry.
    Gcp,
    /// Credentials of Azure's registry.
    Azure,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: &'static [Self] = &[
        Self::Simple,
        Self::DockerHub,
        Self::Private,
        Self::Github,
        Self::Gitlab,
        Self::DigitalOcean,
        Self::Gcp,
        Self::Azure,
    ];

    /// As it is typed.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::DockerHub => "docker-hub",
            Self::Private => "private",
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::DigitalOcean => "digital-ocean",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }

    /// The member of a secret that holds it; none for a simple one.
    pub(super) fn member(self) -> Option<&'static str> {
        match self {
            Self::Simple => None,
            Self::DockerHub => Some("docker_hub_registry"),
            Self::Private => Some("private_registry"),
            Self::Github => Some("github_registry"),
            Self::Gitlab => Some("gitlab_registry"),
            Self::DigitalOcean => Some("digital_ocean_registry"),
            Self::Gcp => Some("gcp_container_registry"),
            Self::Azure => Some("azure_container_registry"),
        }
    }
}

impl Content {
    /// The members of a request that say the type and the value.
    pub(super) async fn body(self, host: &mut Host, printer: &Printer) -> Result<Map<String, Value>, Error> {
        let kind = self.r#type;
        let need = |given: Option<String>, flag: &str| {
            given.ok_or_else(|| {
                Error::input(
                    format!("a secret of type {} needs {flag}", kind.word()),
                    "the value is the password",
                )
            })
        };
        // What is missing is said before anybody types a password.
        let username = match kind {
            Kind::Simple | Kind::Gcp => String::new(),
            _ => need(self.registry_username, "--registry-username")?,
        };
        let url = match kind {
            Kind::Private | Kind::Gcp => need(self.registry_url, "--registry-url")?,
            _ => String::new(),
        };
        let registry_name = match kind {
            Kind::Azure => need(self.registry_name, "--registry-name")?,
            _ => String::new(),
        };
        if kind != Kind::Simple && !self.hosts.is_empty() {
            return Err(Error::input(
                "only a secret of type simple can be bound to hosts",
                "programs never see a registry's",
            ));
        }
        let value = read(self.value, self.from_file, host, printer).await?;
        let mut body = Map::new();
        if !self.hosts.is_empty() {
            body.insert("hosts".to_owned(), json!(self.hosts));
        }
        let Some(member) = kind.member() else {
            body.insert("type".to_owned(), json!("SIMPLE"));
            body.insert("value".to_owned(), json!(value));
            return Ok(body);
        };
        body.insert("type".to_owned(), json!("REGISTRY"));
        let password = value.trim_end_matches(['\n', '\r']);
        let content = match kind {
            Kind::Gcp => json!({ "keyfile_content": value, "url": url }),
            Kind::Azure => {
                json!({ "registry_name": registry_name, "username": username, "password": password })
            }
            Kind::Private => json!({ "username": username, "password": password, "url": url }),
            _ => json!({ "username": username, "password": password }),
        };
        body.insert(member.to_owned(), content);
        Ok(body)
    }
}

/// The value from the first place that gives one. One end of line is taken off what is typed at a terminal and off
/// nothing else: files and pipes are taken as they are.
async fn read(
    value: Option<String>,
    from_file: Option<PathBuf>,
    host: &mut Host,
    printer: &Printer,
) -> Result<String, Error> {
    if let Some(value) = value {
        return Ok(value);
    }
    let (what, mut bytes) = match &from_file {
        Some(path) => {
            let what = format!("{}", path.display());
            let read = match tokio::fs::File::open(path).await {
                Ok(file) => all(file).await,
                Err(source) => Err(source),
            };
            let bytes = read.map_err(|source| Error::Read {
                what: what.clone(),
                source,
            })?;
            (what, bytes)
        }
        None => {
            if host.stdin_is_terminal {
                printer.note("type the value, then Ctrl-D on a line of its own");
            }
            let what = "the value from standard input".to_owned();
            let bytes = all(&mut host.stdin).await.map_err(|source| Error::Read {
                what: what.clone(),
                source,
            })?;
            (what, bytes)
        }
    };
    if from_file.is_none() && host.stdin_is_terminal && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|source| Error::Read {
        what,
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, source),
    })
}

async fn all(from: impl tokio::io::AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(VALUE_MAX_BYTES + 1).read_to_end(&mut bytes).await?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > VALUE_MAX_BYTES) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it is larger than {VALUE_MAX_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}
