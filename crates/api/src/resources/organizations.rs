//! The caller's organization, its members, and moving between organizations.
//!
//! A token belongs to one organization, so every other organization is one that is not there. There is no table of
//! users: who holds a user's token is a member.

use std::time::Duration;

use tram_store::{
    Member,
    intent::{NewCredential, OrganizationEdit},
    record,
};
use tram_types::{
    CredentialId, FieldViolation, OrganizationId, ProjectId, Timestamp, names::check_slug,
    status::CredentialType,
};

use super::credentials::{Mask, random_token};
use crate::{
    endpoint::{Call, Endpoint, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    views::{self, count},
    wire::{
        account::{CreateAccessTokenReply, CreateAccessTokenRequest, LoginReply, Token},
        organization::{
            GetOrganizationReply, ListOrganizationMembersReply, Organization, OrganizationMember,
            OrganizationMemberStatus, UpdateOrganizationDefaultProjectReply,
            UpdateOrganizationDefaultProjectRequest, UpdateOrganizationNameReply,
            UpdateOrganizationNameRequest, UpdateOrganizationPlanReply, UpdateOrganizationPlanRequest,
            UpdateOrganizationReply, UpsertSignupQualificationReply, UpsertSignupQualificationRequest,
            UserRoleRole,
        },
    },
};

/// How long a session token works: a day's work, then the client logs in again.
const SESSION_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Name of the tokens that sessions are, by which a logout tells them from lasting ones.
pub(crate) const SESSION_NAME: &str = "session";
/// Longest name of an organization: it becomes part of host names.
const ORGANIZATION_NAME_MAX_CHARACTERS: usize = 39;

crate::query! {
    /// Which members.
    struct Members {
        page: Page,
        organization_id: Option<OrganizationId>,
        user_id: Option<String>,
        organization_statuses: Vec<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/organizations/{id}", "GetOrganization", read),
        put("/v1/organizations/{id}", "UpdateOrganization", update),
        patch("/v1/organizations/{id}", "UpdateOrganization2", update),
        put("/v1/organizations/{id}/name", "UpdateOrganizationName", rename),
        put(
            "/v1/organizations/{id}/default_project",
            "UpdateOrganizationDefaultProject",
            set_default_project,
        ),
        post("/v1/organizations/{id}/plan", "UpdateOrganizationPlan", set_plan),
        post(
            "/v1/organizations/{id}/signup_qualification",
            "UpsertSignupQualification",
            qualify,
        ),
        post("/v1/organizations/{id}/switch", "SwitchOrganization", switch),
        post(
            "/v1/organizations/{id}/access_token",
            "CreateAccessToken",
            access_token,
        ),
        get(
            "/v1/organization_members",
            "ListOrganizationMembers",
            list_members,
        ),
    ]
}

/// The organization in the path, if it is the caller's.
pub(crate) fn own<Q, B>(call: &Call<Q, B>, name: &str) -> Result<OrganizationId, Error> {
    let id: OrganizationId = call.id(name)?;
    if id == call.caller.organization {
        Ok(id)
    } else {
        Err(Error::not_found("organization", id))
    }
}

async fn read(call: Call) -> Result<GetOrganizationReply, Error> {
    let id = own(&call, "id")?;
    let organization = call.api.store.organization(id).await?;
    Ok(GetOrganizationReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

async fn update(call: Call<Mask, Organization>) -> Result<UpdateOrganizationReply, Error> {
    let id = own(&call, "id")?;
    let current = views::organization::organization(&call.api.store.organization(id).await?);
    let wanted: Organization = call.merged(&current, call.query.update_mask.as_deref())?;
    let project = match wanted.default_project_id.as_str() {
        "" => None,
        text => Some(project(&call, text).await?),
    };
    let edit = OrganizationEdit {
        name: Some(named(wanted.name)?),
        default_project_id: project.map(Some),
    };
    let organization = call.api.store.update_organization(id, &edit).await?;
    Ok(UpdateOrganizationReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

async fn rename(
    call: Call<Nothing, UpdateOrganizationNameRequest>,
) -> Result<UpdateOrganizationNameReply, Error> {
    let id = own(&call, "id")?;
    let edit = OrganizationEdit {
        name: Some(named(call.body.name)?),
        default_project_id: None,
    };
    let organization = call.api.store.update_organization(id, &edit).await?;
    Ok(UpdateOrganizationNameReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

async fn set_default_project(
    call: Call<Nothing, UpdateOrganizationDefaultProjectRequest>,
) -> Result<UpdateOrganizationDefaultProjectReply, Error> {
    let id = own(&call, "id")?;
    let project = project(&call, &call.body.default_project_id).await?;
    let edit = OrganizationEdit {
        name: None,
        default_project_id: Some(Some(project)),
    };
    let organization = call.api.store.update_organization(id, &edit).await?;
    Ok(UpdateOrganizationDefaultProjectReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

/// There is one plan here, so the organization stays as it is.
async fn set_plan(
    call: Call<Nothing, UpdateOrganizationPlanRequest>,
) -> Result<UpdateOrganizationPlanReply, Error> {
    let id = own(&call, "id")?;
    let organization = call.api.store.organization(id).await?;
    Ok(UpdateOrganizationPlanReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

/// There is no sign-up here, so the organization stays as it is.
async fn qualify(
    call: Call<Nothing, UpsertSignupQualificationRequest>,
) -> Result<UpsertSignupQualificationReply, Error> {
    let id = own(&call, "id")?;
    let organization = call.api.store.organization(id).await?;
    Ok(UpsertSignupQualificationReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

fn named(name: String) -> Result<String, Error> {
    check_slug(&name, 1, ORGANIZATION_NAME_MAX_CHARACTERS).map_err(|rule| Error::field("name", rule))?;
    Ok(name)
}

async fn project<Q, B>(call: &Call<Q, B>, text: &str) -> Result<ProjectId, Error> {
    const FIELD: &str = "default_project_id";
    let id: ProjectId = text
        .parse()
        .map_err(|error| Error::field(FIELD, format!("{error}")))?;
    match call.api.store.project(call.caller.organization, id).await {
        Ok(project) => Ok(project.id),
        Err(tram_store::Error::NotFound { .. }) => Err(Error::field(FIELD, "there is no such project")),
        Err(error) => Err(error.into()),
    }
}

async fn switch(call: Call) -> Result<LoginReply, Error> {
    own(&call, "id")?;
    session(&call).await
}

/// A token that works for a while, with the rights of the one that asks.
pub(crate) async fn session<Q, B>(call: &Call<Q, B>) -> Result<LoginReply, Error> {
    let until = call.api.clock.now().plus(SESSION_LIFETIME);
    let (token, credential) = short_lived(call, until).await?;
    Ok(LoginReply {
        token: Some(Token {
            id: token,
            user_id: credential.user_id,
            organization_id: credential.organization_id.to_string(),
            expires_at: credential.expires_at,
        }),
    })
}

async fn short_lived<Q, B>(
    call: &Call<Q, B>,
    until: Timestamp,
) -> Result<(String, record::Credential), Error> {
    let caller = &call.caller;
    let token = random_token();
    let kind = match caller.user.is_empty() {
        true => CredentialType::Organization,
        false => CredentialType::User,
    };
    let credential = call
        .api
        .store
        .create_credential(NewCredential {
            id: CredentialId::random(),
            organization_id: caller.organization,
            user_id: caller.user.clone(),
            kind,
            role: caller.role,
            name: SESSION_NAME.to_owned(),
            description: format!("made by {}", caller.credential_name),
            token_sha256: tram_store::token_sha256(&token),
            // A token must not outlive the one that made it.
            expires_at: Some(caller.expires_at.map_or(until, |end| end.min(until))),
        })
        .await?;
    Ok((token, credential))
}

async fn access_token(
    call: Call<Nothing, CreateAccessTokenRequest>,
) -> Result<CreateAccessTokenReply, Error> {
    own(&call, "id")?;
    let lifetime = match call.body.validity.as_str() {
        "" => SESSION_LIFETIME,
        text => text
            .strip_suffix('s')
            .and_then(|seconds| seconds.parse::<u64>().ok())
            .map(Duration::from_secs)
            .filter(|lifetime| !lifetime.is_zero() && *lifetime <= ACCESS_TOKEN_LIFETIME_MAX)
            .ok_or_else(|| {
                let most = ACCESS_TOKEN_LIFETIME_MAX.as_secs();
                Error::field(
                    "validity",
                    format!("must be seconds such as `3600s`, at most `{most}s`"),
                )
            })?,
    };
    let until = call.api.clock.now().plus(lifetime);
    let (token, _) = short_lived(&call, until).await?;
    Ok(CreateAccessTokenReply { token })
}

/// Longest life of an access token: it is meant to pass, a credential is there for what lasts.
const ACCESS_TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

async fn list_members(call: Call<Members>) -> Result<ListOrganizationMembersReply, Error> {
    let query = call.query;
    let page = query.page;
    let own = call.caller.organization;
    let mut reply = ListOrganizationMembersReply {
        limit: page.limit,
        offset: page.offset,
        ..ListOrganizationMembersReply::default()
    };
    if query.organization_id.is_none_or(|id| id == own) {
        let store = &call.api.store;
        let organization = store.organization(own).await?;
        let listed = store
            .list_members(own, query.user_id.as_deref(), page.stored())
            .await?;
        reply.count = count(listed.count);
        reply.members = listed
            .items
            .into_iter()
            .map(|found| member(&organization, found))
            .collect();
    }
    Ok(reply)
}

fn member(organization: &record::Organization, found: Member) -> OrganizationMember {
    let user = found.user_id.as_str();
    OrganizationMember {
        id: user.to_owned(),
        organization_id: organization.id.to_string(),
        user_id: user.to_owned(),
        external_id: String::new(),
        joined_at: Some(found.joined_at),
        role: UserRoleRole::Owner,
        status: OrganizationMemberStatus::Active,
        user: Some(views::organization::public_user(user, user)),
        organization: Some(views::organization::public_organization(organization)),
    }
}

/// The project that a request names, in its body or its header; `None`: the whole organization.
pub(crate) async fn project_of<Q, B>(call: &Call<Q, B>, given: &str) -> Result<Option<ProjectId>, Error> {
    if given.is_empty() {
        if let Some(id) = call.caller.project {
            return Ok(Some(
                call.api.store.project(call.caller.organization, id).await?.id,
            ));
        }
        return Ok(None);
    }
    let unknown = || {
        Error::Invalid(vec![FieldViolation::new(
            "project_id",
            "there is no such project",
        )])
    };
    let id: ProjectId = given.parse().map_err(|_| unknown())?;
    match call.api.store.project(call.caller.organization, id).await {
        Ok(project) => Ok(Some(project.id)),
        Err(tram_store::Error::NotFound { .. }) => Err(unknown()),
        Err(error) => Err(error.into()),
    }
}

/// The project of a new service: the one named, or the organization's default one.
pub(crate) async fn project_of_service<Q, B>(
    call: &Call<Q, B>,
    given: &str,
) -> Result<Option<ProjectId>, Error> {
    match project_of(call, given).await? {
        Some(project) => Ok(Some(project)),
        None => Ok(call
            .api
            .store
            .organization(call.caller.organization)
            .await?
            .default_project_id),
    }
}
