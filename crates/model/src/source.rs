//! Where a model is fetched from: a place on the web, a file of a repository of the Hugging Face hub, or a registry of
//! images that keeps models too.

/// Longest source, in bytes.
const SOURCE_MAX_BYTES: usize = 1024;
/// What a file of the hub starts with.
const HUB_PREFIX: &str = "hf://";
/// What an artifact of a registry starts with.
const REGISTRY_PREFIX: &str = "oci://";
/// The tag that is meant when none is said, which names nothing.
const LATEST: &str = "latest";
/// The revision that is meant when none is said.
const MAIN: &str = "main";

/// Where a model is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A URL.
    Web(String),
    /// `hf://organization/repository/file[@revision]`.
    Hub {
        /// `organization/repository`.
        repository: String,
        /// The file, below folders perhaps.
        file: String,
        /// A branch, a tag or a commit.
        revision: String,
    },
    /// `oci://registry/repository[:tag|@digest]`: what stands behind the slashes, as images are named.
    Registry(String),
}

impl Source {
    /// Reads what a person writes.
    ///
    /// # Errors
    /// With what is wrong, for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > SOURCE_MAX_BYTES || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!(
                "a source has at most {SOURCE_MAX_BYTES} bytes and no spaces"
            ));
        }
        if let Some(path) = text.strip_prefix(HUB_PREFIX) {
            return Self::of_hub(path);
        }
        if let Some(reference) = text.strip_prefix(REGISTRY_PREFIX) {
            if reference.is_empty() {
                return Err(format!(
                    "`{text}` names nothing: give `oci://registry/repository:tag`"
                ));
            }
            return Ok(Self::Registry(reference.to_owned()));
        }
        if text.starts_with("https://") || is_of_this_machine(text) {
            return Ok(Self::Web(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no source of a model: give `https://…`, `hf://organization/repository/file.gguf` or \
             `oci://registry/repository:tag`"
        ))
    }

    fn of_hub(path: &str) -> Result<Self, String> {
        let (path, revision) = path.rsplit_once('@').unwrap_or((path, MAIN));
        let mut parts = path.splitn(3, '/');
        let (Some(organization), Some(repository), Some(file)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(format!(
                "`{HUB_PREFIX}{path}` names no file: give `hf://organization/repository/file.gguf`"
            ));
        };
        let plain = |part: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part != "." && part != ".." && part.chars().all(fits)
        };
        if ![organization, repository]
            .into_iter()
            .chain(file.split('/'))
            .chain(revision.split('/'))
            .all(plain)
        {
            return Err(format!(
                "`{HUB_PREFIX}{path}` may have letters, digits, dashes, underscores and dots between its slashes"
            ));
        }
        Ok(Self::Hub {
            repository: format!("{organization}/{repository}"),
            file: file.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Where the file is, with the hub at `hub`. Of a registry, what the person wrote: it is asked what that stands for.
    #[must_use]
    pub fn url(&self, hub: &str) -> String {
        match self {
            Self::Web(url) => url.clone(),
            Self::Registry(reference) => format!("{REGISTRY_PREFIX}{reference}"),
            Self::Hub {
                repository,
                file,
                revision,
            } => {
                let revision = revision.replace('/', "%2F");
                format!(
                    "{}/{repository}/resolve/{revision}/{file}",
                    hub.trim_end_matches('/')
                )
            }
        }
    }

    /// A name for the model: the file's, in small letters, without its ending; of a registry, the repository's last part and
    /// the tag.
    #[must_use]
    pub fn name(&self) -> String {
        let path = match self {
            Self::Registry(reference) => return name_in_registry(reference),
            Self::Web(url) => url.split(['?', '#']).next().unwrap_or_default(),
            Self::Hub { file, .. } => file,
        };
        let file = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        file.strip_suffix(".gguf").unwrap_or(&file).to_owned()
    }
}

/// `smollm2-360m` for `registry/ai/smollm2:360m`.
fn name_in_registry(reference: &str) -> String {
    let named = reference.split('@').next().unwrap_or_default();
    let last = named.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((repository, tag)) if tag != LATEST => format!("{repository}-{tag}"),
        Some((repository, _)) => repository.to_owned(),
        None => last.to_owned(),
    }
    .to_ascii_lowercase()
}

/// Whether a URL may do without TLS: what it leads to is this machine, in numbers, which no name server can turn.
#[must_use]
pub fn is_of_this_machine(url: &str) -> bool {
    let rest = url.strip_prefix("http://").unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A colon may also be that of a password, behind which the host comes.
    let (host, port) = host.rsplit_once(':').unwrap_or((host, ""));
    matches!(host, "127.0.0.1" | "[::1]") && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_lead_to_files_and_names() {
        let seen = |text: &str| {
            let source = Source::parse(text).unwrap();
            (source.url("https://huggingface.co/"), source.name())
        };
        assert_eq!(
            seen("hf://mistralai/Some-Model-GGUF/Some-Model.Q4_K_M.gguf"),
            (
                "https://huggingface.co/mistralai/Some-Model-GGUF/resolve/main/Some-Model.Q4_K_M.gguf"
                    .to_owned(),
                "some-model.q4_k_m".to_owned()
            )
        );
        assert_eq!(
            seen("hf://a/b/folder/c.gguf@refs/pr/1").0,
            "https://huggingface.co/a/b/resolve/refs%2Fpr%2F1/folder/c.gguf"
        );
        assert_eq!(seen("https://example.org/x/Tiny.gguf?download=1").1, "tiny");
        assert_eq!(seen("http://127.0.0.1:8000/a.gguf").1, "a");
    }

    #[test]
    fn what_a_registry_keeps_is_called_as_it_is_there() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, name) in [
            (
                "oci://registry.example.com:5000/ai/smollm2:360M-Q4_K_M",
                "smollm2-360m-q4_k_m",
            ),
            ("oci://registry.example.com:5000/smollm2", "smollm2"),
            ("oci://ai/smollm2:latest", "smollm2"),
            (
                &format!("oci://registry.example.com/smollm2:v1@{digest}"),
                "smollm2-v1",
            ),
            (&format!("oci://registry.example.com/smollm2@{digest}"), "smollm2"),
        ] {
            let source = Source::parse(text).unwrap();
            assert_eq!(
                (source.name().as_str(), source.url("https://hub").as_str()),
                (name, text)
            );
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in [
            "",
            "smollm2",
            "http://example.org/a.gguf",
            "http://127.0.0.1.example.org/a.gguf",
            "http://127.0.0.1@example.org/a.gguf",
            "http://127.0.0.1:80@example.org/a.gguf",
            "file:///etc/passwd",
            "oci://",
            "hf://a/b",
            "hf://a/b/",
            "hf://a/../c.gguf",
            "hf://a/b/c.gguf@",
            "hf://a/b/c d.gguf",
            "https://example.org/a b",
        ] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
