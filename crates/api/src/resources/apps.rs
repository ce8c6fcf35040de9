//! Apps: namespaces of services with domains.

use tram_store::{
    filter,
    intent::{AppEdit, NewApp},
    record::{self, Desired, Domain},
};
use tram_types::{
    AppId, OrganizationId, ProjectId,
    names::check_app_name,
    status::{AppStatus, TriggerType},
};

use super::{credentials::Mask, domains, services};
use crate::{
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{self, count},
    wire::app::{
        App, AppLifeCycle, CreateApp, CreateAppReply, DeleteAppReply, GetAppReply, ListAppsReply,
        PauseAppReply, ResumeAppReply, UpdateApp, UpdateAppReply,
    },
};

crate::query! {
    /// Which apps.
    struct Filters {
        page: Page,
        name: Option<String>,
        project_id: Option<ProjectId>,
        ids: Vec<AppId>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/apps", "ListApps", list),
        post("/v1/apps", "CreateApp", create),
        get("/v1/apps/{id}", "GetApp", read),
        put("/v1/apps/{id}", "UpdateApp", update),
        patch("/v1/apps/{id}", "UpdateApp2", update),
        delete("/v1/apps/{id}", "DeleteApp", remove),
        post("/v1/apps/{id}/pause", "PauseApp", pause),
        post("/v1/apps/{id}/resume", "ResumeApp", resume),
    ]
}

/// Apps belong to no project, so the filter by project finds all of them.
async fn list(call: Call<Filters>) -> Result<ListAppsReply, Error> {
    let page = call.query.page;
    let filter = filter::Apps {
        name: call.query.name,
        ids: call.query.ids,
    };
    let organization = call.caller.organization;
    let listed = call
        .api
        .store
        .list_apps(organization, &filter, page.stored())
        .await?;
    let ids: Vec<AppId> = listed.items.iter().map(|app| app.id).collect();
    let domains = domains_of(&call.api, organization, ids).await?;
    let total = count(listed.count);
    Ok(ListAppsReply {
        apps: listed
            .items
            .iter()
            .map(|app| views::app::item(&call.api.settings, app, &domains))
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}

/// The domains of some apps, oldest first: clients take the first one for the app's address.
async fn domains_of(
    api: &ApiState,
    organization: OrganizationId,
    app_ids: Vec<AppId>,
) -> Result<Vec<Domain>, Error> {
    if app_ids.is_empty() {
        return Ok(Vec::new());
    }
    let filter = filter::Domains {
        app_ids,
        ..filter::Domains::default()
    };
    let listed = api
        .store
        .list_domains(organization, &filter, filter::Page::largest())
        .await?;
    Ok(listed.items.into_iter().rev().collect())
}

/// An app as a client sees it.
pub(crate) async fn show(api: &ApiState, app: &record::App) -> Result<App, Error> {
    let domains = domains_of(api, app.organization_id, vec![app.id]).await?;
    Ok(views::app::app(&api.settings, app, &domains))
}

/// What a new app is to be, once its name was found good.
pub(crate) fn new_app(organization: OrganizationId, body: &CreateApp, field: &str) -> Result<NewApp, Error> {
    check_app_name(&body.name).map_err(|rule| Error::field(field, rule))?;
    Ok(NewApp {
        id: AppId::random(),
        organization_id: organization,
        name: body.name.clone(),
        status: AppStatus::Healthy,
        delete_when_empty: body
            .life_cycle
            .as_ref()
            .is_some_and(|life_cycle| life_cycle.delete_when_empty),
    })
}

async fn create(call: Call<Nothing, CreateApp>) -> Result<CreateAppReply, Error> {
    let new = new_app(call.caller.organization, &call.body, "name")?;
    let domain = domains::auto_assigned(&call.api, new.organization_id, new.id, &new.name).await?;
    let (app, domain) = call.api.store.create_app_with_domain(new, domain).await?;
    Ok(CreateAppReply {
        app: Some(views::app::app(&call.api.settings, &app, &[domain])),
    })
}

async fn read(call: Call) -> Result<GetAppReply, Error> {
    let id: AppId = call.id("id")?;
    let app = call.api.store.app(call.caller.organization, id).await?;
    Ok(GetAppReply {
        app: Some(show(&call.api, &app).await?),
    })
}

async fn update(call: Call<Mask, UpdateApp>) -> Result<UpdateAppReply, Error> {
    let id: AppId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.app(organization, id).await?;
    let wanted: UpdateApp = call.merged(
        &UpdateApp {
            name: Some(current.name.clone()),
            life_cycle: Some(AppLifeCycle {
                delete_when_empty: current.delete_when_empty,
            }),
        },
        call.query.update_mask.as_deref(),
    )?;
    // A name that is left out stays, with PUT too: an app without a name is none.
    let name = wanted
        .name
        .filter(|name| !name.is_empty())
        .unwrap_or(current.name);
    check_app_name(&name).map_err(|rule| Error::field("name", rule))?;
    let edit = AppEdit {
        name: Some(name),
        delete_when_empty: Some(wanted.life_cycle.unwrap_or_default().delete_when_empty),
    };
    let app = call.api.store.update_app(organization, id, &edit).await?;
    Ok(UpdateAppReply {
        app: Some(show(&call.api, &app).await?),
    })
}

async fn remove(call: Call) -> Result<DeleteAppReply, Error> {
    let id: AppId = call.id("id")?;
    call.api
        .store
        .set_app_desired(call.caller.organization, id, Desired::Delete)
        .await?;
    Ok(DeleteAppReply {})
}

async fn pause(call: Call) -> Result<PauseAppReply, Error> {
    let id: AppId = call.id("id")?;
    call.api
        .store
        .set_app_desired(call.caller.organization, id, Desired::Pause)
        .await?;
    Ok(PauseAppReply {})
}

async fn resume(call: Call) -> Result<ResumeAppReply, Error> {
    let id: AppId = call.id("id")?;
    let organization = call.caller.organization;
    call.api.store.app(organization, id).await?;
    let _turn = call.api.turns.of(id).await;
    let mut deployments = Vec::new();
    for service in services::of_app(&call.api, organization, id).await? {
        if service.desired == Desired::Pause {
            let again = services::deployed_again(&call, &service, TriggerType::Resume, false, None).await?;
            deployments.push((service.id, again));
        }
    }
    call.api.store.resume_app(organization, id, deployments).await?;
    Ok(ResumeAppReply {})
}
