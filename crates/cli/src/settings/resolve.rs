//! The order of precedence, and the refusal of what nobody knows.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tram_types::names::{DNS_LABEL_MAX_CHARACTERS, check_slug};

use super::{Flags, KEYS, Settings, value::Setting};
use crate::suggest;

/// The file that is read when no other is named and it is there.
pub const DEFAULT_FILE: &str = "/etc/tram/tram.toml";
/// What every variable of ours starts with.
const VARIABLE_PREFIX: &str = "TRAM_";
/// Variables of ours that are no settings: the client's, and the name of the file.
const OTHER_VARIABLES: &[&str] = &["TRAM_CONFIG", "TRAM_CONTEXT", "TRAM_TOKEN", "TRAM_URL"];
/// Variables of tests, which run beside settings.
const TEST_PREFIX: &str = "TRAM_TEST_";

/// Why settings could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the settings in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Something is set that nobody knows.
    #[error("{place}: there is no setting `{name}`")]
    Unknown {
        /// The file, or the environment.
        place: String,
        /// What was set.
        name: String,
        /// The nearest that there is.
        near: Option<String>,
    },
    /// A value makes no sense.
    #[error("{place}: {reason}")]
    Value {
        /// The argument, the variable, or the file and the key.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// Whether it is the caller who may not read the file.
    fn is_denied(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { near: Some(near), .. } => Some(format!("did you mean `{near}`?")),
            Self::Unknown { near: None, .. } => Some("`tram up --help` lists the settings".to_owned()),
            Self::Read { .. } if self.is_denied() => {
                Some("run it with sudo, or name a file of yours with `--config`".to_owned())
            }
            Self::Read { .. } | Self::Toml { .. } | Self::Value { .. } => None,
        }
    }
}

/// Everything that was given, checked for unknown names.
pub(super) struct Given<'g> {
    pub(super) flags: &'g Flags,
    variables: &'g BTreeMap<String, String>,
    file: toml::Table,
    path: PathBuf,
}

impl Given<'_> {
    /// The value of one setting, from the most particular place that has it.
    pub(super) fn find<S: Setting>(&self, name: &str, flag: Option<&str>) -> Result<Option<S>, Error> {
        let refused = |place: String| move |reason| Error::Value { place, reason };
        // What is given by hand is relative to where the hand is, what is in the file to where the file is.
        let here = || std::env::current_dir().unwrap_or_default();
        if let Some(text) = flag {
            let place = format!("--{}", name.replace('_', "-"));
            return S::parse(text)
                .map(|value| Some(value.in_folder(&here())))
                .map_err(refused(place));
        }
        let variable = format!("{VARIABLE_PREFIX}{}", name.to_ascii_uppercase());
        if let Some(text) = self.variables.get(&variable) {
            return S::parse(text)
                .map(|value| Some(value.in_folder(&here())))
                .map_err(refused(variable));
        }
        match self.file.get(name) {
            Some(value) => {
                let place = format!("{}: {name}", self.path.display());
                let folder = here().join(self.path.parent().unwrap_or(Path::new("")));
                S::of_toml(value)
                    .map(|value| Some(value.in_folder(&folder)))
                    .map_err(refused(place))
            }
            None => Ok(None),
        }
    }
}

/// How a file is read.
pub(super) type Read = dyn Fn(&Path) -> io::Result<String>;

fn read_file(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

impl Settings {
    /// Resolves the settings from arguments, variables and the file that they name.
    ///
    /// # Errors
    /// When a name is unknown, a value makes no sense, or a named file cannot be read.
    pub fn resolve(flags: &Flags, variables: &BTreeMap<String, String>) -> Result<Self, Error> {
        Self::resolve_from(flags, variables, Path::new(DEFAULT_FILE))
    }

    /// As [`Settings::resolve`], also when the file may not be read: then without it, and with what was in the way.
    ///
    /// # Errors
    /// As there.
    pub fn resolve_what_can_be_read(
        flags: &Flags,
        variables: &BTreeMap<String, String>,
    ) -> Result<(Self, Option<Error>), Error> {
        Self::resolve_what_reads(flags, variables, &read_file)
    }

    pub(super) fn resolve_what_reads(
        flags: &Flags,
        variables: &BTreeMap<String, String>,
        read: &Read,
    ) -> Result<(Self, Option<Error>), Error> {
        let default = Path::new(DEFAULT_FILE);
        match Self::resolve_by(flags, variables, default, read) {
            Err(unread) if unread.is_denied() => {
                let without = Self::resolve_by(flags, variables, default, &|_| Ok(String::new()))?;
                Ok((without, Some(unread)))
            }
            other => other.map(|settings| (settings, None)),
        }
    }

    /// As [`Settings::resolve`], with another file to look for when none is named.
    ///
    /// # Errors
    /// As there.
    pub fn resolve_from(
        flags: &Flags,
        variables: &BTreeMap<String, String>,
        default_file: &Path,
    ) -> Result<Self, Error> {
        Self::resolve_by(flags, variables, default_file, &read_file)
    }

    fn resolve_by(
        flags: &Flags,
        variables: &BTreeMap<String, String>,
        default_file: &Path,
        read: &Read,
    ) -> Result<Self, Error> {
        refuse_unknown_variables(variables)?;
        let named = flags
            .config
            .clone()
            .or_else(|| variables.get("TRAM_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| default_file.to_owned());
        let text = match read(&path) {
            Ok(text) => text,
            Err(source) if named.is_none() && source.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let file: toml::Table = toml::from_str(&text).map_err(|source| Error::Toml {
            path: path.clone(),
            source: Box::new(source),
        })?;
        for name in file.keys() {
            if !KEYS.iter().any(|key| key.name == name) {
                return Err(Error::Unknown {
                    place: path.display().to_string(),
                    name: name.clone(),
                    near: suggest::nearest(&name.replace('-', "_"), KEYS.iter().map(|key| key.name))
                        .map(str::to_owned),
                });
            }
        }
        let settings = Self::build(&Given {
            flags,
            variables,
            file,
            path,
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// What no single value shows: names that end up in domains, and settings that exclude each other.
    fn check(&self) -> Result<(), Error> {
        let wrong = |place: &str, reason: String| {
            Err(Error::Value {
                place: place.to_owned(),
                reason,
            })
        };
        for (place, name) in [("organization", &self.organization), ("region", &self.region)] {
            if let Err(rule) = check_slug(name, 2, DNS_LABEL_MAX_CHARACTERS) {
                return wrong(place, format!("`{name}` {rule}"));
            }
        }
        for label in self.base_domain.split('.') {
            if let Err(rule) = check_slug(label, 1, DNS_LABEL_MAX_CHARACTERS) {
                return wrong("base_domain", format!("part `{label}` {rule}"));
            }
        }
        if self.http_port == self.https_port {
            return wrong(
                "https_port",
                format!("{} is the port for HTTP already", self.https_port),
            );
        }
        Ok(())
    }
}

fn refuse_unknown_variables(variables: &BTreeMap<String, String>) -> Result<(), Error> {
    let known: Vec<String> = KEYS.iter().map(super::Key::variable).collect();
    for name in variables.keys().filter(|name| name.starts_with(VARIABLE_PREFIX)) {
        if name.starts_with(TEST_PREFIX) || OTHER_VARIABLES.contains(&name.as_str()) || known.contains(name) {
            continue;
        }
        return Err(Error::Unknown {
            place: "environment".to_owned(),
            name: name.clone(),
            near: suggest::nearest(
                name,
                known
                    .iter()
                    .map(String::as_str)
                    .chain(OTHER_VARIABLES.iter().copied()),
            )
            .map(str::to_owned),
        });
    }
    Ok(())
}
