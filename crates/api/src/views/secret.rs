//! Secrets as clients see them: without their value.

use tram_store::record;

use super::id;
use crate::wire::secret::Secret;

pub(crate) fn secret(secret: &record::Secret, hosts: Vec<String>) -> Secret {
    Secret {
        id: secret.id.to_string(),
        name: secret.name.clone(),
        organization_id: secret.organization_id.to_string(),
        r#type: secret.kind,
        updated_at: Some(secret.updated_at),
        created_at: Some(secret.created_at),
        project_id: id(secret.project_id),
        hosts: (!hosts.is_empty()).then_some(hosts),
        ..Secret::default()
    }
}
