//! Image names: the standard Docker reference rules, and the operator's aliases.
//!
//! `nginx` means `docker.io/library/nginx:latest`; the first part is a registry when it has a dot or a port, or is
//! `localhost`. A [`Reference`] is always complete, so that no other code has to know
//! the defaults. The API server and the store parse with it; nothing here does I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{self, Digest};

/// The registry of names that have none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together, as the distribution project has it.
const MAX_NAME_CHARS: usize = 255;
/// Longest tag.
const MAX_TAG_CHARS: usize = 128;

/// A complete image name: registry, repository, and a tag, a digest or both. With both, the digest decides and
/// the tag is for people.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name. The messages are for the person who wrote the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing there.
    #[error("the image name is empty: write one like `nginx:1.29` or `registry.example.com/team/app:v1`")]
    Empty,
    /// `https://`, `docker://` and the like.
    #[error("the image name starts with `{scheme}://`: leave that out and write `{rest}`")]
    Scheme {
        /// What stood before `://`.
        scheme: String,
        /// What stood after.
        rest: String,
    },
    /// Registry and repository are too long together.
    #[error("the image name is longer than {MAX_NAME_CHARS} characters")]
    TooLong,
    /// The registry part is no host name.
    #[error(
        "`{0}` is not a registry: write a host name, with a port if it needs one, like `registry.example.com:5000`"
    )]
    Registry(String),
    /// Upper case in the repository.
    #[error("image names are lower case: write `{0}`")]
    UpperCase(String),
    /// The repository part is malformed.
    #[error(
        "`{0}` is not an image name: use lower-case letters, digits and single `.`, `_`, `-` between them, parts separated by `/`"
    )]
    Repository(String),
    /// The tag is malformed.
    #[error(
        "`{0}` is not a tag: use up to {MAX_TAG_CHARS} letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
    )]
    Tag(String),
    /// The part after `@` is no digest.
    #[error("the digest after `@` is not usable: {0}")]
    Digest(#[source] digest::ParseError),
    /// 64 hexadecimal digits alone would be taken for an image id by other tools.
    #[error("`{0}` is an image id, not a name: write the repository and `@sha256:` before it")]
    BareId(String),
}

impl Reference {
    /// The registry as named, such as `docker.io` or `localhost:5000`; not the address it is reached under.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry, such as `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None` only when a digest stands alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the name pins one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    #[must_use]
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The short form people write: `nginx:1.29` for `docker.io/library/nginx:1.29`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => match rest.strip_prefix("library/") {
                // `library/team/app` has two parts without its first, and would be read as another.
                Some(name) if !name.contains('/') => name.to_owned(),
                // `docker.io/localhost/x` must keep its registry or it would be read as another.
                _ if is_registry(rest.split('/').next().unwrap_or_default()) => full,
                _ => rest.to_owned(),
            },
            None => full,
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(ParseError::Scheme {
                scheme: shorten(scheme),
                rest: shorten(rest),
            });
        }
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseError::BareId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ParseError::Digest)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ParseError::Tag(shorten(tag)));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        if !is_host_and_port(registry) {
            return Err(ParseError::Registry(shorten(registry)));
        }
        let registry = match registry.to_ascii_lowercase() {
            alias if alias == "index.docker.io" || alias == "registry-1.docker.io" => {
                DEFAULT_REGISTRY.to_owned()
            }
            other => other,
        };
        if repository.bytes().any(|byte| byte.is_ascii_uppercase())
            && is_repository(&repository.to_ascii_lowercase())
        {
            return Err(ParseError::UpperCase(shorten(&repository.to_ascii_lowercase())));
        }
        if !is_repository(repository) {
            return Err(ParseError::Repository(shorten(repository)));
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        let tag = tag
            .map(str::to_owned)
            .or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        let reference = Self {
            registry,
            repository,
            tag,
            digest,
        };
        if reference.name().len() > MAX_NAME_CHARS {
            return Err(ParseError::TooLong);
        }
        Ok(reference)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The operator's map of image names: an image asked for under one name is taken from another, such as
/// `koyeb/sandbox` from a registry of the house.
///
/// A key without tag or digest matches every tag, and the tag asked for is kept unless the target names its
/// own. A key with a tag matches that tag alone and wins over one without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    exact: BTreeMap<Reference, Reference>,
    names: BTreeMap<String, AliasTarget>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AliasTarget {
    reference: Reference,
    /// Whether the operator wrote a tag or digest on the right-hand side.
    pinned: bool,
}

impl Aliases {
    /// Reads a map of names, as it stands in the settings.
    pub fn new<K: AsRef<str>, V: AsRef<str>>(
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ParseError> {
        let mut aliases = Self::default();
        for (from, to) in entries {
            let (from, to) = (from.as_ref(), to.as_ref());
            let source: Reference = from.parse()?;
            let reference: Reference = to.parse()?;
            if has_tag_or_digest(from) {
                aliases.exact.insert(source, reference);
            } else {
                let target = AliasTarget {
                    reference,
                    pinned: has_tag_or_digest(to),
                };
                aliases.names.insert(source.name(), target);
            }
        }
        Ok(aliases)
    }

    /// The name to pull instead of `reference`: one step, so that aliases cannot form a loop.
    #[must_use]
    pub fn apply(&self, reference: &Reference) -> Reference {
        if let Some(exact) = self.exact.get(reference) {
            return exact.clone();
        }
        match self.names.get(&reference.name()) {
            Some(target) if target.pinned => target.reference.clone(),
            Some(target) => Reference {
                tag: reference.tag.clone(),
                digest: reference.digest,
                ..target.reference.clone()
            },
            None => reference.clone(),
        }
    }
}

fn has_tag_or_digest(text: &str) -> bool {
    text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// Whether the first part of a name is a registry rather than part of a repository on Docker Hub.
///
/// Upper-case letters alone do not make one, unlike with Docker: a name is kept in lower case, where it would then
/// mean another image.
fn is_registry(first: &str) -> bool {
    first.eq_ignore_ascii_case("localhost") || first.contains(['.', ':'])
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if port.is_some_and(|port| {
        !port.bytes().all(|byte| byte.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|n| n > 0)
    }) {
        return false;
    }
    if text.starts_with('[') {
        return host.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_repository(text: &str) -> bool {
    !text.is_empty() && text.split('/').all(is_repository_part)
}

/// Runs of lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_repository_part(part: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_CHARS
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Keeps messages short whatever was sent in.
fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    if text.chars().count() <= SHOWN_CHARS {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests;
