//! Service pools, and the claims that take services from them.

use std::time::Instant;

use tram_store::{NewServicePool, ServicePoolEdit, filter, record};
use tram_types::{
    ClaimId, FieldViolation, ServicePoolId,
    definition::DeploymentDefinition,
    names::NAME_MAX_CHARACTERS,
    status::{DefinitionType, PoolClaimStatus},
};

use self::member::{fitted, member_name, pool_member};
use super::{credentials::Mask, services::created_by};
use crate::{
    definition::{self, value},
    endpoint::{Call, Endpoint, delete, get, post, put},
    error::Error,
    query::{Nothing, Page},
    views::{self, count, part},
    wire::pool::{
        CreateServicePool, CreateServicePoolReply, DeleteServicePoolReply, GetPoolClaimReply,
        GetServicePoolReply, ListPoolClaimReply, ListServicePoolsReply, PoolClaimReply, PoolClaimRequest,
        UpdateServicePool, UpdateServicePoolReply,
    },
};

pub(crate) mod member;

/// Most services that one pool keeps ready: each of them runs all the time.
const SIZE_MAX: u32 = 1000;
/// Longest name of a request for a service, in bytes: clients send a UUID.
const REQUEST_ID_MAX_BYTES: usize = 256;
/// How often a claim is tried again when the pool's definition changes under it.
const CLAIM_TRIES: usize = 3;

crate::query! {
    /// Which pools.
    struct Filters {
        page: Page,
        name: Option<String>,
    }
    /// Which claims.
    struct ClaimFilters {
        page: Page,
        status: Option<PoolClaimStatus>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/service_pools", "ListServicePools", list),
        post("/v1/service_pools", "CreateServicePool", create),
        get("/v1/service_pools/{id}", "GetServicePool", read),
        put("/v1/service_pools/{id}", "UpdateServicePool", update),
        delete("/v1/service_pools/{id}", "DeleteServicePool", remove),
        get("/v1/service_pools/{pool_id}/claims", "ListClaim", list_claims),
        post("/v1/claim", "Claim", claim),
        get("/v1/claims/{claim_id}", "GetClaim", read_claim),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListServicePoolsReply, Error> {
    let (organization, page) = (call.caller.organization, call.query.page);
    let name = call.query.name.as_ref();
    let store = &call.api.store;
    let listed = store
        .list_service_pools(organization, name, page.stored())
        .await?;
    let ready = store.pool_ready_counts(organization).await?;
    let of = |pool: &record::ServicePool| ready.get(&pool.id).copied().unwrap_or_default();
    let total = count(listed.count);
    Ok(ListServicePoolsReply {
        service_pools: listed
            .items
            .iter()
            .map(|pool| views::pool::pool(pool, of(pool)))
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}

async fn show<Q, B>(
    call: &Call<Q, B>,
    pool: &record::ServicePool,
) -> Result<crate::wire::pool::ServicePool, Error> {
    let ready = call.api.store.pool_ready_counts(pool.organization_id).await?;
    let ready = ready.get(&pool.id).copied().unwrap_or_default();
    Ok(views::pool::pool(pool, ready))
}

/// Checks size and definition; the definition's rules are those of a service.
async fn check<Q, B>(
    call: &Call<Q, B>,
    size: i64,
    definition: Option<&DeploymentDefinition>,
    mut wrong: Vec<FieldViolation>,
) -> Result<u32, Error> {
    let size = u32::try_from(size)
        .ok()
        .filter(|size| (1..=SIZE_MAX).contains(size));
    if size.is_none() {
        wrong.push(FieldViolation::new(
            "size",
            format!("must be between 1 and {SIZE_MAX}"),
        ));
    }
    match definition {
        None => wrong.push(FieldViolation::new("definition", "must be given")),
        Some(definition) if definition.r#type == DefinitionType::Database => {
            wrong.push(FieldViolation::new(
                "definition.type",
                "must be WEB, WORKER or SANDBOX: a pool keeps no databases",
            ));
        }
        Some(definition) => {
            definition::check_supported(definition)?;
            if !definition.volumes.is_empty() {
                wrong.push(FieldViolation::new(
                    "definition.volumes",
                    "must be empty: a volume belongs to one service, and a pool has several",
                ));
            }
            let named = fitted(definition.clone(), &member_name("pool"));
            let project = call.caller.project;
            wrong.extend(
                definition::violations(&call.api, call.caller.organization, project, None, &named).await?,
            );
        }
    }
    match size.filter(|_| wrong.is_empty()) {
        Some(size) => Ok(size),
        None => Err(Error::Invalid(wrong)),
    }
}

async fn create(call: Call<Nothing, CreateServicePool>) -> Result<CreateServicePoolReply, Error> {
    let body = &call.body;
    let mut wrong = Vec::new();
    if !(1..=NAME_MAX_CHARACTERS).contains(&body.name.chars().count()) {
        wrong.push(FieldViolation::new(
            "name",
            format!("must have 1 to {NAME_MAX_CHARACTERS} characters"),
        ));
    }
    let size = check(&call, body.size, body.definition.as_ref(), wrong).await?;
    let new = NewServicePool {
        id: ServicePoolId::random(),
        organization_id: call.caller.organization,
        name: body.name.clone(),
        size,
        definition: value(&body.definition)?,
        created_by: created_by(&call),
    };
    let most = call.api.settings.pool_members_max;
    let pool = call.api.store.create_service_pool(new, most).await?;
    Ok(CreateServicePoolReply {
        service_pool: Some(views::pool::pool(&pool, 0)),
    })
}

async fn read(call: Call) -> Result<GetServicePoolReply, Error> {
    let id: ServicePoolId = call.id("id")?;
    let pool = call.api.store.service_pool(call.caller.organization, id).await?;
    Ok(GetServicePoolReply {
        service_pool: Some(show(&call, &pool).await?),
    })
}

/// A definition that is left out stays, with PUT too: a pool without one is none.
async fn update(call: Call<Mask, UpdateServicePool>) -> Result<UpdateServicePoolReply, Error> {
    let id: ServicePoolId = call.id("id")?;
    let organization = call.caller.organization;
    let pool = call.api.store.service_pool(organization, id).await?;
    let current: DeploymentDefinition = part(&pool.definition);
    let wanted: UpdateServicePool = call.merged(
        &UpdateServicePool {
            size: i64::from(pool.size),
            definition: Some(current.clone()),
        },
        call.query.update_mask.as_deref(),
    )?;
    let definition = wanted.definition.unwrap_or_else(|| current.clone());
    let size = check(&call, wanted.size, Some(&definition), Vec::new()).await?;
    let edit = ServicePoolEdit {
        size: Some(size),
        definition: match definition == current {
            true => None,
            false => Some(value(&definition)?),
        },
    };
    let most = call.api.settings.pool_members_max;
    let pool = call
        .api
        .store
        .update_service_pool(organization, id, edit, most)
        .await?;
    Ok(UpdateServicePoolReply {
        service_pool: Some(show(&call, &pool).await?),
    })
}

async fn remove(call: Call) -> Result<DeleteServicePoolReply, Error> {
    let id: ServicePoolId = call.id("id")?;
    call.api
        .store
        .delete_service_pool(call.caller.organization, id)
        .await?;
    Ok(DeleteServicePoolReply {})
}

/// A member that waits is taken by one write; without one, a service is made in the same way. Asking again gives what
/// was given before.
async fn claim(call: Call<Nothing, PoolClaimRequest>) -> Result<PoolClaimReply, Error> {
    let (organization, body) = (call.caller.organization, &call.body);
    let id: ServicePoolId = body
        .pool_id
        .parse()
        .map_err(|error| Error::field("pool_id", format!("{error}")))?;
    if !(1..=REQUEST_ID_MAX_BYTES).contains(&body.request_id.len()) {
        return Err(Error::field(
            "request_id",
            format!("must have 1 to {REQUEST_ID_MAX_BYTES} bytes: choose a new one for each service"),
        ));
    }
    let store = &call.api.store;
    let (began, at) = (Instant::now(), call.api.clock.now());
    let mut cold = None;
    let mut changed = None;
    for _ in 0..CLAIM_TRIES {
        match store.claim(organization, id, &body.request_id, cold.take()).await {
            Ok(Some(claim)) => {
                // One that was answered before counts once.
                if claim.created_at >= at {
                    call.api.claims.claimed(id, claim.prewarmed, began.elapsed());
                }
                return Ok(PoolClaimReply {
                    claim_id: claim.id.to_string(),
                    service_id: claim.service_id.to_string(),
                    prewarmed: claim.prewarmed,
                });
            }
            Ok(None) => {
                let pool = store.service_pool(organization, id).await?;
                cold = Some(pool_member(&call.api, &pool).await?);
            }
            // Another definition by now, for which another service is made; or it is being deleted, which stays so.
            Err(error @ tram_store::Error::Conflict { .. }) => changed = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(changed.map_or_else(
        || Error::Unanswered("the pool changes too fast for a claim: try again".to_owned()),
        Error::from,
    ))
}

async fn read_claim(call: Call) -> Result<GetPoolClaimReply, Error> {
    let id: ClaimId = call.id("claim_id")?;
    let claim = call.api.store.pool_claim(call.caller.organization, id).await?;
    Ok(GetPoolClaimReply {
        claim: Some(views::pool::claim(&claim)),
    })
}

async fn list_claims(call: Call<ClaimFilters>) -> Result<ListPoolClaimReply, Error> {
    let id: ServicePoolId = call.id("pool_id")?;
    let (organization, page) = (call.caller.organization, call.query.page);
    call.api.store.service_pool(organization, id).await?;
    let filter = filter::Claims {
        pool_id: Some(id),
        status: call.query.status,
    };
    let listed = call
        .api
        .store
        .list_pool_claims(organization, &filter, page.stored())
        .await?;
    let total = count(listed.count);
    Ok(ListPoolClaimReply {
        claims: listed.items.iter().map(views::pool::claim).collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}
