//! The first start: an organization, its default project, an API token, and a context for the command line.
//!
//! The token is in the file of contexts before the database knows its hash, so a start that is cut in half never
//! leaves an installation whose token nobody has: the next one makes another.

use std::path::{Path, PathBuf};

use rand::distr::{Alphanumeric, SampleString};
use tram_store::{
    Store,
    filter::Page,
    intent::NewCredential,
    record::{Organization, Role},
};
use tram_types::{CredentialId, OrganizationId, ProjectId, status::CredentialType};

/// What official clients demand of a token.
const TOKEN_CHARACTERS: usize = 64;
/// Name of the project that every organization has.
const DEFAULT_PROJECT: &str = "default";
/// Name of the context of this machine's own installation.
pub const CONTEXT: &str = "local";

/// Why the first start failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not do it.
    #[error("cannot prepare the first organization")]
    Store(#[from] tram_store::Error),
    /// The context could not be written.
    #[error("cannot keep the new API token for the command line")]
    Context(#[from] tram_cli::context::Error),
}

/// A token that was made now.
#[derive(Debug)]
pub struct FirstToken {
    /// The token; shown once.
    pub token: String,
    /// The file of contexts that has it.
    pub context_file: PathBuf,
}

/// Makes what the first start makes, if it is missing. `Some` when a token was made.
///
/// # Errors
/// When the store or the file of contexts cannot be written.
pub async fn ensure(
    store: &Store,
    organization_name: &str,
    api_url: &str,
    context_file: &Path,
) -> Result<Option<FirstToken>, Error> {
    let existing = store
        .list_organizations_unscoped(&Default::default(), Page { limit: 1, offset: 0 })
        .await?;
    let organization = match existing.items.into_iter().next() {
        Some(organization) => {
            let credentials = store
                .list_credentials(organization.id, &Default::default(), Page { limit: 1, offset: 0 })
                .await?;
            if credentials.count > 0 {
                return Ok(None);
            }
            organization
        }
        None => make_organization(store, organization_name).await?,
    };
    let token = Alphanumeric.sample_string(&mut rand::rng(), TOKEN_CHARACTERS);
    tram_cli::context::write_context(context_file, CONTEXT, api_url, &token)?;
    store
        .create_credential(NewCredential {
            id: CredentialId::random(),
            organization_id: organization.id,
            user_id: String::new(),
            kind: CredentialType::Organization,
            role: Role::Owner,
            name: "first start".to_owned(),
            description: "Made by the first start of `tram up`".to_owned(),
            token_sha256: tram_store::token_sha256(&token),
            expires_at: None,
        })
        .await?;
    Ok(Some(FirstToken {
        token,
        context_file: context_file.to_owned(),
    }))
}

async fn make_organization(store: &Store, name: &str) -> Result<Organization, Error> {
    Ok(store
        .create_organization(
            OrganizationId::random(),
            name,
            ProjectId::random(),
            DEFAULT_PROJECT,
        )
        .await?)
}
