//! The caller: profile, organizations, settings, sessions.

use crate::{
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Order, Page},
    resources::organizations::{SESSION_NAME, session},
    views,
    wire::{
        account::{
            GetUserSettingsReply, ListUserOrganizationsReply, LoginReply, LogoutReply,
            UpdateUserSettingsReply, UpdateUserSettingsRequest, UserReply, UserSettings,
        },
        organization::GetOrganizationReply,
    },
};

crate::query! {
    /// Which organizations.
    struct Organizations {
        page: Page,
        order: Order,
        search: Option<String>,
        statuses: Vec<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/account/profile", "GetCurrentUser", profile),
        get("/v1/account/organization", "GetCurrentOrganization", organization),
        get(
            "/v1/account/organizations",
            "ListUserOrganizations",
            organizations,
        ),
        get("/v1/account/settings", "GetUserSettings", settings),
        patch("/v1/account/settings", "UpdateUserSettings", update_settings),
        post("/v1/account/session", "NewSession", new_session),
        put("/v1/account/refresh", "RefreshToken", new_session),
        delete("/v1/account/logout", "Logout", logout),
        post(
            "/v1/unscope_organization_token",
            "UnscopeOrganizationToken",
            new_session,
        ),
    ]
}

/// The user that the token speaks for. One official client asks for the organization when there is none.
fn user<Q, B>(call: &Call<Q, B>) -> Result<&str, Error> {
    match call.caller.user.as_str() {
        "" => Err(Error::NotFound {
            kind: "user behind the API token",
            given: call.caller.credential_name.clone(),
        }),
        user => Ok(user),
    }
}

async fn profile(call: Call) -> Result<UserReply, Error> {
    let user = user(&call)?;
    Ok(UserReply {
        user: Some(views::organization::user(user, user)),
    })
}

async fn organization(call: Call) -> Result<GetOrganizationReply, Error> {
    let organization = call.api.store.organization(call.caller.organization).await?;
    Ok(GetOrganizationReply {
        organization: Some(views::organization::organization(&organization)),
    })
}

async fn organizations(call: Call<Organizations>) -> Result<ListUserOrganizationsReply, Error> {
    let page = call.query.page;
    let organization = call.api.store.organization(call.caller.organization).await?;
    let found = call
        .query
        .search
        .as_ref()
        .is_none_or(|search| organization.name.contains(search.as_str()));
    let all: Vec<_> = found
        .then(|| views::organization::organization(&organization))
        .into_iter()
        .collect();
    Ok(ListUserOrganizationsReply {
        organizations: page.of(all),
        limit: page.limit,
        offset: page.offset,
        has_next: false,
    })
}

async fn settings(call: Call) -> Result<GetUserSettingsReply, Error> {
    let user = user(&call)?;
    Ok(GetUserSettingsReply {
        settings: Some(user_settings(user)),
    })
}

async fn update_settings(
    call: Call<Nothing, UpdateUserSettingsRequest>,
) -> Result<UpdateUserSettingsReply, Error> {
    let user = user(&call)?;
    if call.body.failed_deployment_email_notification == Some(true) {
        return Err(Error::NotImplemented(
            "this installation sends no e-mail: watch failed deployments by their status or events"
                .to_owned(),
        ));
    }
    Ok(UpdateUserSettingsReply {
        settings: Some(user_settings(user)),
    })
}

fn user_settings(user: &str) -> UserSettings {
    UserSettings {
        id: user.to_owned(),
        user_id: user.to_owned(),
        failed_deployment_email_notification: false,
    }
}

async fn new_session(call: Call) -> Result<LoginReply, Error> {
    session(&call).await
}

/// Ends a session. A lasting token stays: it is revoked by deleting its credential.
async fn logout(call: Call) -> Result<LogoutReply, Error> {
    let caller = &call.caller;
    if caller.expires_at.is_some() && caller.credential_name == SESSION_NAME {
        call.api
            .store
            .delete_credential(caller.organization, caller.credential)
            .await?;
    }
    Ok(LogoutReply {})
}
