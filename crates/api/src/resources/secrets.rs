//! Secrets: stored encrypted, never listed with their value, revealed on request to whoever may write.
//!
//! What the store keeps as a value is the one member of the contract's `oneof` as a JSON document:
//! `{"value":"…"}` for a simple secret, `{"private_registry":{"username":…,"password":…,"url":…}}` and the like for
//! a registry's. Whoever resolves secrets reads that form.

use serde_json::Value;
use tram_store::{
    filter,
    intent::{NewSecret, SecretEdit},
    record,
};
use tram_types::{FieldViolation, ProjectId, SecretId, bound, names::check_secret_name, status::SecretType};

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
    let ids: Vec<SecretId> = listed.items.iter().map(|secret| secret.id).collect();
    let mut hosts = call
        .api
        .store
        .secret_hosts(call.caller.organization, &ids)
        .await?;
    let mut view =
        |secret: &record::Secret| views::secret::secret(secret, hosts.remove(&secret.id).unwrap_or_default());
    Ok(ListSecretsReply {
        secrets: listed.items.iter().map(&mut view).collect(),
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
    let hosts = bound_to(body.hosts.as_deref().unwrap_or_default(), &mut wrong);
    if !hosts.is_empty() {
        bindable(body.r#type, given.value.as_deref(), &mut wrong);
    }
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
                hosts: hosts.clone(),
            },
            chosen.as_bytes(),
        )
        .await?;
    Ok(CreateSecretReply {
        secret: Some(views::secret::secret(&secret, hosts)),
    })
}

async fn read(call: Call) -> Result<GetSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    let secret = call.api.store.secret(call.caller.organization, id).await?;
    let hosts = hosts_of(&call, id).await?;
    Ok(GetSecretReply {
        secret: Some(views::secret::secret(&secret, hosts)),
    })
}

/// A name, a value or hosts that are left out stay, with PUT too: clients do not know it, so they cannot send it back, and a
/// client that knows of no hosts must not set a secret free.
async fn update(call: Call<Mask, Secret>) -> Result<UpdateSecretReply, Error> {
    let id: SecretId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.secret(organization, id).await?;
    let were = hosts_of(&call, id).await?;
    let mut wanted: Secret = call.merged(
        &views::secret::secret(&current, were.clone()),
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
    let hosts = match &wanted.hosts {
        Some(hosts) => bound_to(hosts, &mut wrong),
        None => were.clone(),
    };
    let mut edit = SecretEdit {
        name: Some(wanted.name),
        ..SecretEdit::default()
    };
    if !hosts.is_empty() {
        let kept = match &given.value {
            None if given.registries.is_empty() && current.kind == SecretType::Simple => {
                text_of(&call.api.store.reveal_secret(organization, id).await?.value)
            }
            _ => None,
        };
        let kind = match given.registries.is_empty() {
            true => current.kind,
            false => SecretType::Registry,
        };
        let kind = if given.value.is_some() {
            SecretType::Simple
        } else {
            kind
        };
        bindable(kind, given.value.as_deref().or(kept.as_deref()), &mut wrong);
    }
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
        .update_secret(
            organization,
            id,
            &edit,
            chosen.as_deref().map(str::as_bytes),
            // What did not change is not written: another call may be binding it.
            (hosts != were).then_some(hosts.as_slice()),
        )
        .await?;
    Ok(UpdateSecretReply {
        secret: Some(views::secret::secret(&secret, hosts)),
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
    let kept = call.api.store.reveal_secret(organization, id).await?.value;
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

async fn hosts_of<Q, B>(call: &Call<Q, B>, id: SecretId) -> Result<Vec<String>, Error> {
    let mut found = call
        .api
        .store
        .secret_hosts(call.caller.organization, &[id])
        .await?;
    Ok(found.remove(&id).unwrap_or_default())
}

/// The hosts that a request names, as they are kept.
fn bound_to(given: &[String], wrong: &mut Vec<FieldViolation>) -> Vec<String> {
    bound::hosts(given).unwrap_or_else(|rule| {
        wrong.push(FieldViolation::new("hosts", rule));
        Vec::new()
    })
}

/// What may be bound to hosts: text that fits into the head of a request. What is missing is told elsewhere.
fn bindable(kind: SecretType, value: Option<&str>, wrong: &mut Vec<FieldViolation>) {
    if kind != SecretType::Simple {
        let rule = "only a secret of type SIMPLE can be bound to hosts: a registry's is not shown to programs anyway";
        wrong.push(FieldViolation::new("hosts", rule));
    } else if let Some(Err(rule)) = value.map(bound::check_value) {
        wrong.push(FieldViolation::new("value", rule));
    }
}

/// The text of a kept value.
fn text_of(kept: &[u8]) -> Option<String> {
    let kept: Value = serde_json::from_slice(kept).ok()?;
    Some(kept.get("value")?.as_str()?.to_owned())
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
