//! API tokens as clients see them: the token itself only in the answer that made it.

use tram_store::record;

use crate::wire::credential::Credential;

pub(crate) fn credential(credential: &record::Credential, token: String) -> Credential {
    Credential {
        id: credential.id.to_string(),
        r#type: credential.kind,
        name: credential.name.clone(),
        token,
        description: credential.description.clone(),
        user_id: credential.user_id.clone(),
        organization_id: credential.organization_id.to_string(),
        updated_at: Some(credential.updated_at),
        created_at: Some(credential.created_at),
        expires_at: credential.expires_at,
        role: credential.role.to_string(),
    }
}
