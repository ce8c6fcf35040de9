//! API tokens: made, listed, renamed, revoked. The token itself is shown once, in the answer that made it.

use rand::RngExt;
use tram_store::{
    filter,
    intent::{CredentialEdit, NewCredential},
    record::Role,
};
use tram_types::{
    CredentialId, FieldViolation, OrganizationId, Timestamp, names::NAME_MAX_CHARACTERS,
    status::CredentialType,
};

use crate::{
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    views::{self, count},
    wire::credential::{
        CreateCredential, CreateCredentialReply, Credential, DeleteCredentialReply, GetCredentialReply,
        ListCredentialsReply, UpdateCredentialReply,
    },
};

/// Longest description of anything: a paragraph.
pub(crate) const DESCRIPTION_MAX_CHARACTERS: usize = 1000;

crate::query! {
    /// Which tokens.
    struct Filters {
        page: Page,
        r#type: Option<CredentialType>,
        name: Option<String>,
        organization_id: Option<OrganizationId>,
        user_id: Option<String>,
    }
    /// Which members of an update count.
    struct Mask {
        update_mask: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/credentials", "ListCredentials", list),
        post("/v1/credentials", "CreateCredential", create),
        get("/v1/credentials/{id}", "GetCredential", read),
        put("/v1/credentials/{id}", "UpdateCredential", update),
        patch("/v1/credentials/{id}", "UpdateCredential2", update),
        delete("/v1/credentials/{id}", "DeleteCredential", remove),
    ]
}

/// A new token: 256 random bits as the 64 characters that one official client insists on.
pub(crate) fn random_token() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill(&mut bytes);
    hex::encode(bytes)
}

async fn list(call: Call<Filters>) -> Result<ListCredentialsReply, Error> {
    let query = call.query;
    let page = query.page;
    if query
        .organization_id
        .is_some_and(|id| id != call.caller.organization)
    {
        return Ok(ListCredentialsReply {
            limit: page.limit,
            offset: page.offset,
            ..ListCredentialsReply::default()
        });
    }
    let filter = filter::Credentials {
        kind: query.r#type,
        name: query.name,
        user_id: query.user_id,
        ids: Vec::new(),
    };
    let listed = call
        .api
        .store
        .list_credentials(call.caller.organization, &filter, page.stored())
        .await?;
    Ok(ListCredentialsReply {
        credentials: listed
            .items
            .iter()
            .map(|credential| views::credential::credential(credential, String::new()))
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: count(listed.count),
    })
}

async fn create(call: Call<Nothing, CreateCredential>) -> Result<CreateCredentialReply, Error> {
    let body = call.body;
    let mut wrong = texts(&body.name, &body.description);
    let role = match body.role.as_str() {
        "" => Role::Owner,
        text => role(text, &mut wrong),
    };
    if !body.organization_id.is_empty() && body.organization_id != call.caller.organization.to_string() {
        wrong.push(FieldViolation::new(
            "organization_id",
            "must be the organization of the token that asks",
        ));
    }
    let now = call.api.clock.now();
    if body.expires_at.is_some_and(|end| end <= now) {
        wrong.push(FieldViolation::new("expires_at", "must lie in the future"));
    }
    let (kind, user_id) = match body.r#type {
        CredentialType::Invalid | CredentialType::Organization => {
            (CredentialType::Organization, String::new())
        }
        CredentialType::User => (CredentialType::User, call.caller.user.clone()),
    };
    if kind == CredentialType::User && user_id.is_empty() {
        wrong.push(FieldViolation::new(
            "type",
            "must be ORGANIZATION: the token that asks speaks for no user",
        ));
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let token = random_token();
    let credential = call
        .api
        .store
        .create_credential(NewCredential {
            id: CredentialId::random(),
            organization_id: call.caller.organization,
            user_id,
            kind,
            role,
            name: body.name,
            description: body.description,
            token_sha256: tram_store::token_sha256(&token),
            expires_at: body.expires_at.map(|end: Timestamp| end),
        })
        .await?;
    Ok(CreateCredentialReply {
        credential: Some(views::credential::credential(&credential, token)),
    })
}

async fn read(call: Call) -> Result<GetCredentialReply, Error> {
    let id: CredentialId = call.id("id")?;
    let credential = call.api.store.credential(call.caller.organization, id).await?;
    Ok(GetCredentialReply {
        credential: Some(views::credential::credential(&credential, String::new())),
    })
}

/// What is left out stays, role and end with PUT too: clients that do not know them must not widen a token by renaming
/// it. A mask that names `expires_at` without a value for it takes the end away.
async fn update(call: Call<Mask, Credential>) -> Result<UpdateCredentialReply, Error> {
    let id: CredentialId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.credential(organization, id).await?;
    let mask = call.query.update_mask.as_deref();
    let wanted: Credential = call.merged(&views::credential::credential(&current, String::new()), mask)?;
    let mut wrong = texts(&wanted.name, &wanted.description);
    let role = match wanted.role.as_str() {
        "" => current.role,
        text => role(text, &mut wrong),
    };
    let is_given = call.given.get("expires_at").is_some_and(|end| !end.is_null());
    let is_named = mask.is_some_and(|mask| mask.split(',').any(|name| name.trim() == "expires_at"));
    let expires_at = match is_named && !is_given {
        true => None,
        false => wanted.expires_at.or(current.expires_at),
    };
    if expires_at != current.expires_at {
        let now = call.api.clock.now();
        if expires_at.is_some_and(|end| end <= now) {
            wrong.push(FieldViolation::new("expires_at", "must lie in the future"));
        }
        let reaches = |limit: Timestamp| expires_at.is_none_or(|end| end > limit);
        if let Some(limit) = call.caller.expires_at.filter(|limit| reaches(*limit)) {
            wrong.push(FieldViolation::new(
                "expires_at",
                format!("must not be after {limit}, when the token that asks ends"),
            ));
        }
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let edit = CredentialEdit {
        name: Some(wanted.name),
        description: Some(wanted.description),
        role: Some(role),
        expires_at: Some(expires_at),
    };
    let credential = call.api.store.update_credential(organization, id, &edit).await?;
    Ok(UpdateCredentialReply {
        credential: Some(views::credential::credential(&credential, String::new())),
    })
}

fn role(text: &str, wrong: &mut Vec<FieldViolation>) -> Role {
    text.parse().unwrap_or_else(|_| {
        wrong.push(FieldViolation::new("role", "must be OWNER, READ_ONLY or MODELS"));
        Role::ReadOnly
    })
}

async fn remove(call: Call) -> Result<DeleteCredentialReply, Error> {
    let id: CredentialId = call.id("id")?;
    call.api
        .store
        .delete_credential(call.caller.organization, id)
        .await?;
    Ok(DeleteCredentialReply {})
}

/// What is wrong with a name and a description.
pub(crate) fn texts(name: &str, description: &str) -> Vec<FieldViolation> {
    let mut wrong = Vec::new();
    let length = name.chars().count();
    if name.trim().is_empty() || length > NAME_MAX_CHARACTERS {
        wrong.push(FieldViolation::new(
            "name",
            format!("must have 1 to {NAME_MAX_CHARACTERS} characters, has {length}"),
        ));
    }
    if description.chars().count() > DESCRIPTION_MAX_CHARACTERS {
        wrong.push(FieldViolation::new(
            "description",
            format!("may have at most {DESCRIPTION_MAX_CHARACTERS} characters"),
        ));
    }
    wrong
}
