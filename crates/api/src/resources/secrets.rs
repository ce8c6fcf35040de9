//! Secrets: stored encrypted, never listed with their value, revealed on request to whoever may write.
//!
//! What the store keeps as a value is the one member of the contract's `oneof` as a JSON document:
//! `{"value":"…"}` for a simple secret, `{"private_registry":{"username":…,"password":…,"url":…}}` and the like for
//! a registry's. Whoever resolves secrets reads that form.

use serde_json::Value;
use tram_store::{
    filter,
    intent::{NewSecret, SecretEdit},
};
use tram_types::{FieldViolation, ProjectId, SecretId, names::check_secret_name, status::SecretType};

use super::{credentials::Mask, organizations::project_of};
use crate::{
    definition::value,
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    views::{self, count},
    wire::secret::{
        CreateSecret, CreateSecretReply, DeleteSecretReply, GetSecretReply, ListSecretsReply,
        RevealSecretReply, Secret, UpdateSecretReply,
    },
};

/// Largest value of a secret: a key file fits, and one still fits into an environment variable.
const VALUE_MAX_BYTES: usize = 64 * 1024;

crate::query! {
    /// Which secrets.
    struct Filters {
        page: Page,
        name: Option<String>,
        types: Vec<SecretType>,
        project_id: Option<ProjectId>,
        ids: Vec<SecretId>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/secrets", "ListSecrets", list),
        post("/v1/secrets", "CreateSecret", create),
        get("/v1/secrets/{id}", "GetSecret", read),
        put("/v1/secrets/{id}", "UpdateSecret", update),
        patch("/v1/secrets/{id}", "UpdateSecret2", update),
        delete("/v1/secrets/{id}", "DeleteSecret", remove),
        post("/v1/secrets/{id}/reveal", "RevealSecret", reveal),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListSecretsReply, Error> {
    let query = call.query;
    let filter = filter::Secrets {
        name: query.name,
        kinds: query.types,
        project_id: query.project_id.or(call.caller.project),
        ids: query.ids,
    };
    let page = query.page;
    let listed = call
        .api
        .store
        .list_secrets(call.caller.organization, &filter, page.stored())
        .await?;
    Ok(ListSecretsReply {
        secrets: listed.items.iter().map(views::secret::secret).collect(),
        limit: page.limit,
        offset: page.offset,
        count: count(listed.count),
    })
}

async fn create(call: Call<Nothing, CreateSecret>) -> Result<CreateSecretReply, Error> {
    let project_id = project_of(&call, &call.body.project_id).await?;
    let body = call.body;
    let mut wrong = name_rules(&body.name);
    let given = Given {
        registries: registries(&body)?,
        value: body.value,
    };
    let chosen = given.choose(body.r#type, &mut wrong);
    let Some(chosen) = chosen.filter(|_| wrong.is_empty()) else {
        return Err(Error::Invalid(wrong));
    };
    let secret = call
        .api
        .store
        .create_secret(
            NewSecret {
                id: SecretId::random(),
                organization_id: call.caller.organization,
                project_id,
                name: body.name,
                kind: body.r#type,
            },
            chosen.as_bytes(),
        )
        .await?;
    Ok(CreateSecretReply {
        secret: Some(views::secret::secret(&secret)),
    })
}

async fn read(call: Call) -> Result<GetSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    let secret = call.api.store.secret(call.caller.organization, id).await?;
    Ok(GetSecretReply {
        secret: Some(views::secret::secret(&secret)),
    })
}

/// A name or a value that is left out stays, with PUT too: clients do not know it, so they cannot send it back.
async fn update(call: Call<Mask, Secret>) -> Result<UpdateSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.secret(organization, id).await?;
    let mut wanted: Secret = call.merged(
        &views::secret::secret(&current),
        call.query.update_mask.as_deref(),
    )?;
    if wanted.name.is_empty() {
        wanted.name.clone_from(&current.name);
    }
    let mut wrong = name_rules(&wanted.name);
    let given = Given {
        registries: registries(&wanted)?,
        value: wanted.value,
    };
    let mut edit = SecretEdit {
        name: Some(wanted.name),
        ..SecretEdit::default()
    };
    let chosen = if given.value.is_none() && given.registries.is_empty() {
        None
    } else {
        // A registry's secret may become one of another registry; the type follows the value.
        let kind = match given.value {
            Some(_) => SecretType::Simple,
            None => SecretType::Registry,
        };
        edit.kind = Some(kind);
        given.choose(kind, &mut wrong)
    };
    if current.kind == SecretType::Managed {
        return Err(Error::Precondition(
            "this secret belongs to a database and is managed by the platform".to_owned(),
        ));
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let secret = call
        .api
        .store
        .update_secret(organization, id, &edit, chosen.as_deref().map(str::as_bytes))
        .await?;
    Ok(UpdateSecretReply {
        secret: Some(views::secret::secret(&secret)),
    })
}

async fn remove(call: Call) -> Result<DeleteSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    call.api.store.delete_secret(call.caller.organization, id).await?;
    Ok(DeleteSecretReply {})
}

/// The value: text of a simple secret, the configuration of a registry's.
async fn reveal(call: Call) -> Result<RevealSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    let organization = call.caller.organization;
    let kept = call.api.store.reveal_secret(organization, id).await?;
    let kept: Value = serde_json::from_slice(&kept)
        .map_err(|error| Error::internal("reading the value of a secret", error))?;
    let value = match kept {
        Value::Object(members) => members.into_iter().next().map(|(_, value)| value),
        _ => None,
    };
    Ok(RevealSecretReply {
        value: value.unwrap_or_default(),
    })
}

fn name_rules(name: &str) -> Vec<FieldViolation> {
    check_secret_name(name)
        .err()
        .map(|rule| FieldViolation::new("name", rule))
        .into_iter()
        .collect()
}

/// What a request gives as a secret's value: at most one of these is right.
struct Given {
    value: Option<String>,
    registries: Vec<(String, Value)>,
}

impl Given {
    /// What is kept: the one member that is right, as a JSON document.
    fn choose(self, kind: SecretType, wrong: &mut Vec<FieldViolation>) -> Option<String> {
        let refuse = |wrong: &mut Vec<FieldViolation>, field: &str, description: &str| {
            wrong.push(FieldViolation::new(field, description));
            None
        };
        let kept = match (kind, self.value, self.registries.as_slice()) {
            (SecretType::Managed, ..) => {
                return refuse(
                    wrong,
                    "type",
                    "must be SIMPLE or REGISTRY: MANAGED ones are made by databases",
                );
            }
            (SecretType::Simple, Some(value), []) => serde_json::json!({ "value": value }).to_string(),
            (SecretType::Simple, ..) => {
                return refuse(
                    wrong,
                    "value",
                    "a secret of type SIMPLE takes `value` and nothing else",
                );
            }
            (SecretType::Registry, None, [(member, configuration)]) => {
                let members = configuration.as_object().into_iter().flatten();
                let empty = members
                    .filter(|(_, text)| text.as_str().is_some_and(str::is_empty))
                    .map(|(name, _)| FieldViolation::new(format!("{member}.{name}"), "must not be empty"));
                wrong.extend(empty);
                serde_json::json!({ member: configuration }).to_string()
            }
            (SecretType::Registry, ..) => {
                return refuse(
                    wrong,
                    "type",
                    "a secret of type REGISTRY takes exactly one registry, such as `private_registry`",
                );
            }
        };
        if kept.len() > VALUE_MAX_BYTES {
            let rule = format!("may have at most {VALUE_MAX_BYTES} bytes, has {}", kept.len());
            return refuse(wrong, "value", &rule);
        }
        Some(kept)
    }
}

/// The registries that a message sets, under the names of their members.
fn registries(message: &impl serde::Serialize) -> Result<Vec<(String, Value)>, Error> {
    const MEMBERS: [&str; 7] = [
        "docker_hub_registry",
        "private_registry",
        "digital_ocean_registry",
        "github_registry",
        "gitlab_registry",
        "gcp_container_registry",
        "azure_container_registry",
    ];
    let all = value(message)?;
    Ok(MEMBERS
        .iter()
        .filter_map(|member| Some(((*member).to_owned(), all.get(member)?.clone())))
        .collect())
}
