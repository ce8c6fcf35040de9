//! What may be asked of models: listed, set, taken away. The front enforces it (`crate::inference`).
//!
//! A limit has no id of its own: it is named by what it limits, whose id says by itself which kind it is.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use tram_store::{
    filter,
    record::{self, LimitScope},
};
use tram_types::{CredentialId, FieldViolation, ProjectId, Timestamp, inference::Priority};

use super::quotas::every;
use crate::{
    endpoint::{Call, Endpoint, delete, get, put},
    error::Error,
    query::Nothing,
    views::count,
    wire::model_limit::{
        DeleteModelLimitReply, ListModelLimitsReply, ModelLimit, SetModelLimit, SetModelLimitReply,
    },
};

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/model_limits", "ListModelLimits", list),
        put("/v1/model_limits/{id}", "SetModelLimit", set),
        delete("/v1/model_limits/{id}", "DeleteModelLimit", remove),
    ]
}

/// Names of everything that may have a limit, by id.
type Names = BTreeMap<String, String>;

async fn names<Q, B>(call: &Call<Q, B>) -> Result<Names, Error> {
    let (store, id) = (&call.api.store, call.caller.organization);
    let projects =
        every(|page| async move { store.list_projects(id, &filter::Projects::default(), page).await })
            .await?;
    let tokens = every(|page| async move {
        store
            .list_credentials(id, &filter::Credentials::default(), page)
            .await
    })
    .await?;
    let organization = store.organization(id).await?;
    let mut names = Names::from([(id.to_string(), organization.name)]);
    names.extend(
        projects
            .into_iter()
            .map(|project| (project.id.to_string(), project.name)),
    );
    names.extend(tokens.into_iter().map(|token| (token.id.to_string(), token.name)));
    Ok(names)
}

fn shown(limit: &record::ModelLimit, name: String, spent: u64) -> ModelLimit {
    ModelLimit {
        id: limit.subject_id.clone(),
        scope: limit.scope.to_string(),
        name,
        requests_per_minute: count(limit.requests_per_minute),
        tokens_per_minute: count(limit.tokens_per_minute),
        tokens_per_month: count(limit.tokens_per_month),
        priority: limit.priority.to_string(),
        tokens_this_month: count(spent),
        created_at: Some(limit.created_at),
        updated_at: Some(limit.updated_at),
    }
}

/// The first moment of the month, in UTC.
fn month(at: Timestamp) -> Timestamp {
    let first = at.jiff().to_zoned(TimeZone::UTC).first_of_month();
    let first = first.and_then(|day| day.start_of_day());
    first.map_or(at, |start| start.timestamp().into())
}

async fn list(call: Call) -> Result<ListModelLimitsReply, Error> {
    let kept = call.api.store.model_limits(call.caller.organization).await?;
    let names = names(&call).await?;
    let spent = call
        .api
        .store
        .tokens_spent_by_all(call.caller.organization, month(call.api.clock.now()))
        .await?;
    let limits: Vec<ModelLimit> = kept
        .iter()
        .map(|limit| {
            let name = names.get(&limit.subject_id).cloned().unwrap_or_default();
            let spent = spent.get(&limit.subject_id).copied().unwrap_or(0);
            shown(limit, name, spent)
        })
        .collect();
    Ok(ListModelLimitsReply {
        count: count(limits.len() as u64),
        limits,
    })
}

/// What the id in the path is of, and its name.
async fn subject<Q, B>(call: &Call<Q, B>) -> Result<(LimitScope, String, String), Error> {
    let given = call.text("id").to_ascii_lowercase();
    let unknown = || Error::not_found("organization, project or token", given.as_str());
    let id: CredentialId = given.parse().map_err(|_| unknown())?;
    let (store, organization) = (&call.api.store, call.caller.organization);
    if id.uuid() == organization.uuid() {
        let name = store.organization(organization).await?.name;
        return Ok((LimitScope::Organization, id.to_string(), name));
    }
    match store.credential(organization, id).await {
        Ok(token) => return Ok((LimitScope::Credential, id.to_string(), token.name)),
        Err(tram_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match store.project(organization, ProjectId::from_uuid(id.uuid())).await {
        Ok(project) => Ok((LimitScope::Project, id.to_string(), project.name)),
        Err(tram_store::Error::NotFound { .. }) => Err(unknown()),
        Err(error) => Err(error.into()),
    }
}

async fn set(call: Call<Nothing, SetModelLimit>) -> Result<SetModelLimitReply, Error> {
    let (scope, subject_id, name) = subject(&call).await?;
    let mut wrong = Vec::new();
    let mut number = |field: &str, given: i64| {
        u64::try_from(given).unwrap_or_else(|_| {
            let rule = "must not be below 0; 0 limits nothing";
            wrong.push(FieldViolation::new(field, rule));
            0
        })
    };
    let body = &call.body;
    let requests_per_minute = number("requests_per_minute", body.requests_per_minute);
    let tokens_per_minute = number("tokens_per_minute", body.tokens_per_minute);
    let tokens_per_month = number("tokens_per_month", body.tokens_per_month);
    let priority = match body.priority.as_str() {
        "" => Priority::Normal,
        text => text.parse().unwrap_or_else(|_| {
            wrong.push(FieldViolation::new("priority", "must be low, normal or high"));
            Priority::Normal
        }),
    };
    if priority != Priority::Normal && scope != LimitScope::Credential {
        let rule = "is of a token: give the id of one, or leave it out";
        wrong.push(FieldViolation::new("priority", rule));
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let now = call.api.clock.now();
    let limit = record::ModelLimit {
        organization_id: call.caller.organization,
        scope,
        subject_id,
        requests_per_minute,
        tokens_per_minute,
        tokens_per_month,
        priority,
        created_at: now,
        updated_at: now,
    };
    call.api.store.set_model_limit(&limit).await?;
    call.api.budgets.changed(limit.organization_id);
    let kept = call.api.store.model_limits(limit.organization_id).await?;
    let kept = kept
        .into_iter()
        .find(|kept| kept.scope == scope && kept.subject_id == limit.subject_id)
        .unwrap_or(limit);
    let month = month(now);
    let spent = call
        .api
        .store
        .tokens_spent(kept.organization_id, kept.scope, &kept.subject_id, month)
        .await?;
    Ok(SetModelLimitReply {
        limit: Some(shown(&kept, name, spent)),
    })
}

/// Of what is gone already, too: its limit may still be there.
async fn remove(call: Call) -> Result<DeleteModelLimitReply, Error> {
    let (organization, given) = (call.caller.organization, call.text("id").to_ascii_lowercase());
    let kept = call.api.store.model_limits(organization).await?;
    let Some(limit) = kept.into_iter().find(|limit| limit.subject_id == given) else {
        return Err(Error::not_found("limit", given.as_str()));
    };
    call.api
        .store
        .delete_model_limit(organization, limit.scope, &limit.subject_id)
        .await?;
    call.api.budgets.changed(organization);
    Ok(DeleteModelLimitReply {})
}
