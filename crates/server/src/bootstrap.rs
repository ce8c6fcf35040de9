//! The first start: an organization, its default project, an API token, and a context for the command line.
//!
//! The token is in the file of contexts before the database knows its hash, so a start that is cut in half never
//! leaves an installation whose token nobody has: the next one makes another.

use std::path::{Path, PathBuf};

use rand::distr::{Alphanumeric, SampleString};
use tram_cli::context::{self, Contexts};
use tram_store::{
    Store,
    filter::Page,
    intent::NewCredential,
    record::{Organization, Role},
};
use tram_types::{CredentialId, OrganizationId, ProjectId, status::CredentialType};

use crate::invoker;

/// What official clients demand of a token.
const TOKEN_CHARACTERS: usize = 64;
/// Name of the project that every organization has.
const DEFAULT_PROJECT: &str = "default";

/// What a client needs, after a start.
#[derive(Debug)]
pub struct Access {
    /// Name of the organization.
    pub organization: String,
    /// A token that was made now; shown once.
    pub token: Option<String>,
    /// Where a token of this installation is kept, if it is.
    pub kept: Option<Kept>,
    /// Why the token that was made now is not kept.
    pub trouble: Option<context::Error>,
}

/// A token in a file of contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The file.
    pub file: PathBuf,
    /// The context.
    pub context: String,
}

/// Makes what the first start makes, if it is missing, and brings the address in the context of this installation up
/// to date. A file of contexts that cannot be used is no reason not to start.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn ensure(
    store: &Store,
    organization_name: &str,
    api_url: &str,
    context_file: impl FnOnce() -> Result<PathBuf, context::Error>,
) -> Result<Access, tram_store::Error> {
    let organization = match first_organization(store).await? {
        Some(organization) => organization,
        None => make_organization(store, organization_name).await?,
    };
    let mut access = Access {
        organization: organization.name,
        token: None,
        kept: None,
        trouble: None,
    };
    let credentials = store
        .list_credentials(organization.id, &Default::default(), Page { limit: 1, offset: 0 })
        .await?;
    if credentials.count > 0 {
        if let Ok(file) = context_file() {
            access.kept = follow(store, &file, api_url).await?;
        }
        return Ok(access);
    }
    let token = draw();
    match context_file().and_then(|file| keep(&file, api_url, &token)) {
        Ok(kept) => access.kept = Some(kept),
        Err(trouble) => access.trouble = Some(trouble),
    }
    admit(
        store,
        organization.id,
        &token,
        "first start",
        "Made by the first start of `tram up`",
    )
    .await?;
    access.token = Some(token);
    Ok(access)
}

/// The organization of this machine, once there is one.
///
/// # Errors
/// When the store cannot be read.
pub async fn first_organization(store: &Store) -> Result<Option<Organization>, tram_store::Error> {
    let existing = store
        .list_organizations_unscoped(&Default::default(), Page { limit: 1, offset: 0 })
        .await?;
    Ok(existing.items.into_iter().next())
}

/// A new token. Nobody is let in by it yet.
#[must_use]
pub fn draw() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), TOKEN_CHARACTERS)
}

/// Lets the holder of a token in, as an owner of the organization.
///
/// # Errors
/// When the store cannot be written.
pub async fn admit(
    store: &Store,
    organization_id: OrganizationId,
    token: &str,
    name: &str,
    description: &str,
) -> Result<(), tram_store::Error> {
    store
        .create_credential(NewCredential {
            id: CredentialId::random(),
            organization_id,
            user_id: String::new(),
            kind: CredentialType::Organization,
            role: Role::Owner,
            name: name.to_owned(),
            description: description.to_owned(),
            token_sha256: tram_store::token_sha256(token),
            expires_at: None,
        })
        .await
        .map(drop)
}

/// Keeps a token for the command line of whoever started us.
///
/// # Errors
/// When the file of contexts cannot be read or written.
pub fn keep(file: &Path, api_url: &str, token: &str) -> Result<Kept, context::Error> {
    let context = context::write_local_context(file, api_url, token)?;
    invoker::hand_over(file);
    Ok(Kept {
        file: file.to_owned(),
        context,
    })
}

/// Finds the context that holds a token of this installation. One that `tram up` made gets the address of now; others
/// may lead here in a way that only their owner knows.
async fn follow(store: &Store, file: &Path, api_url: &str) -> Result<Option<Kept>, tram_store::Error> {
    let Ok(mut contexts) = Contexts::read(file) else {
        return Ok(None);
    };
    let (mut found, mut changed) = (None, false);
    for (name, context) in &mut contexts.contexts {
        if context.token.is_empty() || store.credential_by_token(&context.token).await?.is_none() {
            continue;
        }
        let is_ours = context::is_local_name(name);
        if is_ours && !context::same_server(&context.url, api_url) {
            api_url.clone_into(&mut context.url);
            changed = true;
        }
        if is_ours || found.is_none() {
            found = Some(name.clone());
        }
    }
    if changed {
        match contexts.write(file) {
            Ok(()) => invoker::hand_over(file),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "the address of the API changed, and the context for the command line could not be");
            }
        }
    }
    Ok(found.map(|context| Kept {
        file: file.to_owned(),
        context,
    }))
}

async fn make_organization(store: &Store, name: &str) -> Result<Organization, tram_store::Error> {
    store
        .create_organization(
            OrganizationId::random(),
            name,
            ProjectId::random(),
            DEFAULT_PROJECT,
        )
        .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tram_store::{Options, keyring};

    use super::*;

    const URL: &str = "http://127.0.0.1:7080";

    async fn store(directory: &Path) -> Store {
        for room in ["database", "keys"] {
            std::fs::create_dir_all(directory.join(room)).unwrap();
        }
        Store::open(Options {
            database_url: format!("sqlite://{}", directory.join("database/tram.db").display()),
            keyring: keyring::Settings {
                path: directory.join("keys/keyring"),
                create: true,
            },
            proxy_ports: 30000..=30010,
            clock: Arc::new(tram_types::SystemClock),
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_context_that_cannot_be_written_does_not_end_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let access = ensure(&store, "acme", URL, || Err(context::Error::NoHome))
            .await
            .unwrap();
        let token = access.token.unwrap();
        assert!(store.credential_by_token(&token).await.unwrap().is_some());
        assert_eq!((access.kept, access.organization.as_str()), (None, "acme"));
        assert!(matches!(access.trouble, Some(context::Error::NoHome)));
        // A folder cannot be made below a file.
        let file = directory.path().join("keys/keyring/tram/config.toml");
        assert!(keep(&file, URL, "t").is_err());
    }

    #[tokio::test]
    async fn later_starts_find_the_token_and_follow_the_address() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("one")).await;
        let file = directory.path().join("config.toml");
        context::write_context(&file, "work", "https://tram.example.org", "unknown").unwrap();
        let first = ensure(&store, "acme", URL, || Ok(file.clone())).await.unwrap();
        let token = first.token.unwrap();
        let kept = Kept {
            file: file.clone(),
            context: "local".to_owned(),
        };
        assert_eq!(first.kept, Some(kept.clone()));
        // The same token by another way is its owner's affair.
        context::write_context(&file, "tunnel", "https://elsewhere", &token).unwrap();
        let later = ensure(&store, "acme", "http://127.0.0.1:7999", || Ok(file.clone()))
            .await
            .unwrap();
        assert_eq!((later.token, later.kept), (None, Some(kept)));
        let contexts = Contexts::read(&file).unwrap();
        let url = |name: &str| contexts.named(name).unwrap().url.clone();
        assert_eq!(url("local"), "http://127.0.0.1:7999");
        assert_eq!(url("tunnel"), "https://elsewhere");
        assert_eq!(url("work"), "https://tram.example.org");
        assert_eq!(contexts.current, "tunnel");
    }

    #[tokio::test]
    async fn another_installation_does_not_take_the_first_ones_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let one = store(&directory.path().join("one")).await;
        let two = store(&directory.path().join("two")).await;
        let first = ensure(&one, "acme", URL, || Ok(file.clone())).await.unwrap();
        let second = ensure(&two, "acme", "http://127.0.0.1:7090", || Ok(file.clone()))
            .await
            .unwrap();
        assert_eq!(second.kept.unwrap().context, "local-2");
        let again = ensure(&one, "acme", URL, || Ok(file.clone())).await.unwrap();
        assert_eq!((again.token, again.kept), (None, first.kept));
        let lost = ensure(&one, "acme", URL, || Ok(directory.path().join("none")))
            .await
            .unwrap();
        assert_eq!((lost.token, lost.kept), (None, None));
    }
}
