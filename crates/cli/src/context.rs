//! Contexts: which server, with which token. Kept in one file that only its owner may read.
//!
//! What decides, in this order: `--context`; `TRAM_URL` and `TRAM_TOKEN`; `TRAM_CONTEXT`; the file's current
//! context; the address that `tram up` listens on by default. A token kept for one server is never sent to
//! another: with `TRAM_URL` alone, only a context of that same address lends its token. Variables of other clouds'
//! clients are not read, for their tokens are for other servers.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where the API is when nothing says otherwise: `tram up`'s own default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7080";
/// Name of the context of this machine's own installation; further ones are `local-2`, `local-3` …
pub const LOCAL: &str = "local";
/// The file's mode: it holds tokens.
const FILE_MODE: u32 = 0o600;
/// The mode of a folder made for it.
const FOLDER_MODE: u32 = 0o700;

/// A context's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for the file.
    #[error("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for contexts")]
    NoHome,
    /// The file could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} is not a file of contexts: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no context of this name.
    #[error("there is no context `{name}`")]
    Unknown {
        /// The name.
        name: String,
        /// The nearest that there is.
        near: Option<String>,
    },
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome => Some("set HOME, or use TRAM_URL and TRAM_TOKEN alone".to_owned()),
            Self::Malformed { .. } => Some("mend or remove the file, then `tram login` again".to_owned()),
            Self::Unknown { near: Some(near), .. } => {
                Some(format!("did you mean `{near}`? `tram context list` shows all"))
            }
            Self::Unknown { near: None, .. } => {
                Some("`tram context list` shows what there is; `tram login` adds one".to_owned())
            }
            Self::Read { path, source } | Self::Write { path, source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some(format!(
                    "make it yours with `sudo chown $(id -u):$(id -g) {}`, or set both TRAM_URL and TRAM_TOKEN",
                    path.display()
                ))
            }
            Self::Read { .. } => {
                Some("remove it and `tram login` again, or set both TRAM_URL and TRAM_TOKEN".to_owned())
            }
            Self::Write { .. } => None,
        }
    }
}

/// One server and a token for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The address of the API.
    pub url: String,
    /// The token; empty for none.
    #[serde(default)]
    pub token: String,
}

/// The file of contexts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Which one is used when nothing says otherwise; empty for none.
    #[serde(default)]
    pub current: String,
    /// All of them by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// Where the file is for a user with these variables: `$XDG_CONFIG_HOME/tram/config.toml`, else under
/// `$HOME/.config`.
///
/// # Errors
/// When neither variable is set.
pub fn path<'v>(variable: impl Fn(&str) -> Option<&'v str>) -> Result<PathBuf, Error> {
    let folder = match variable("XDG_CONFIG_HOME").filter(|value| value.starts_with('/')) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(
            variable("HOME")
                .filter(|home| !home.is_empty())
                .ok_or(Error::NoHome)?,
        )
        .join(".config"),
    };
    Ok(folder.join("tram").join("config.toml"))
}

impl Contexts {
    /// Reads the file; one that is not there holds none.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|source| Error::Malformed {
            path: path.to_owned(),
            // The message alone: the whole text would quote the line, and with it a token.
            reason: source.message().to_owned(),
        })
    }

    /// Writes the file whole or not at all, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be written; the old one is then as it was.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let text = toml::to_string(self).map_err(|source| failed(io::Error::other(source)))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(failed)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
        }
        let draft = folder.join(format!(".config.toml.{}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&draft)
            .and_then(|mut file| {
                // A draft left by a process that died keeps its old mode.
                file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&draft, path));
        written.map_err(|source| {
            // The draft is of no use; that it cannot be removed either changes nothing.
            let _ = fs::remove_file(&draft);
            failed(source)
        })
    }

    /// The context of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&self, name: &str) -> Result<&Context, Error> {
        self.contexts.get(name).ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
            near: crate::suggest::nearest(name, self.contexts.keys().map(String::as_str)).map(str::to_owned),
        })
    }
}

/// Adds the context `name` to the file at `path`, or replaces it, and makes it the current one. This is how
/// `tram up` lets its user in.
///
/// # Errors
/// When the file cannot be read or written.
pub fn write_context(path: &Path, name: &str, url: &str, token: &str) -> Result<(), Error> {
    let mut contexts = Contexts::read(path)?;
    contexts.current = name.to_owned();
    contexts.contexts.insert(
        name.to_owned(),
        Context {
            url: url.to_owned(),
            token: token.to_owned(),
        },
    );
    contexts.write(path)
}

/// Whether `tram up` gives contexts such a name: `local`, `local-2` …
#[must_use]
pub fn is_local_name(name: &str) -> bool {
    match name.strip_prefix(LOCAL) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix('-')
            .is_some_and(|number| number.parse::<u32>().is_ok()),
        None => false,
    }
}

/// Keeps the token of an installation on this machine and makes its context the current one: `local`, or the next
/// name when that is the context of an installation at another address, whose only token it may hold. Returns the
/// name.
///
/// # Errors
/// When the file cannot be read or written.
pub fn write_local_context(path: &Path, url: &str, token: &str) -> Result<String, Error> {
    let contexts = Contexts::read(path)?;
    let is_free = |name: &str| match contexts.contexts.get(name) {
        Some(there) => there.token.is_empty() || same_server(&there.url, url),
        None => true,
    };
    let mut name = LOCAL.to_owned();
    let mut number = 1_u32;
    while !is_free(&name) {
        number += 1;
        name = format!("{LOCAL}-{number}");
    }
    write_context(path, &name, url, token)?;
    Ok(name)
}

/// A context and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its name in the file, or the variable that gave the address, or `default`.
    pub origin: String,
    /// Server and token.
    pub context: Context,
}

/// Decides which server to speak to; see the module's text for the order.
///
/// # Errors
/// When the file is needed and cannot be read, or a name is of no context.
pub fn resolve<'v>(
    flag: Option<&str>,
    variable: impl Fn(&str) -> Option<&'v str>,
) -> Result<Resolved, Error> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let url = set("TRAM_URL");
    let token = set("TRAM_TOKEN");
    let contexts = match path(&variable) {
        // Nothing in the file matters then, not even that it cannot be read.
        _ if flag.is_none() && url.is_some() && token.is_some() => Contexts::default(),
        Ok(path) => Contexts::read(&path)?,
        Err(_) => Contexts::default(),
    };
    if let Some(name) = flag {
        return Ok(Resolved {
            origin: name.to_owned(),
            context: contexts.named(name)?.clone(),
        });
    }
    let chosen = match (url, set("TRAM_CONTEXT")) {
        (Some(url), _) => Resolved {
            origin: "TRAM_URL".to_owned(),
            context: Context {
                url: url.to_owned(),
                token: contexts
                    .contexts
                    .values()
                    .find(|context| same_server(&context.url, url))
                    .map(|context| context.token.clone())
                    .unwrap_or_default(),
            },
        },
        (None, Some(name)) => Resolved {
            origin: name.to_owned(),
            context: contexts.named(name)?.clone(),
        },
        (None, None) if !contexts.current.is_empty() => Resolved {
            origin: contexts.current.clone(),
            context: contexts.named(&contexts.current)?.clone(),
        },
        (None, None) => Resolved {
            origin: "default".to_owned(),
            context: Context {
                url: DEFAULT_URL.to_owned(),
                token: String::new(),
            },
        },
    };
    let token = token.unwrap_or(&chosen.context.token).to_owned();
    Ok(Resolved {
        context: Context {
            token,
            ..chosen.context
        },
        ..chosen
    })
}

/// Whether two addresses are of one server.
#[must_use]
pub fn same_server(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

#[cfg(test)]
mod tests;
