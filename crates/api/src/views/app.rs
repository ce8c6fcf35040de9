//! Apps as clients see them.

use tram_store::record::{self, Domain};
use tram_types::Int64;

use super::domain;
use crate::{
    state::Settings,
    wire::app::{App, AppLifeCycle, AppListItem},
};

pub(crate) fn app(settings: &Settings, app: &record::App, domains: &[Domain]) -> App {
    App {
        id: app.id.to_string(),
        name: app.name.clone(),
        organization_id: app.organization_id.to_string(),
        created_at: Some(app.created_at),
        updated_at: Some(app.updated_at),
        started_at: app.started_at,
        succeeded_at: app.succeeded_at,
        paused_at: app.paused_at,
        resumed_at: app.resumed_at,
        terminated_at: app.terminated_at,
        status: app.status,
        messages: app.messages.clone(),
        version: Int64(app.version),
        domains: domains_of(settings, app, domains),
        life_cycle: Some(AppLifeCycle {
            delete_when_empty: app.delete_when_empty,
        }),
    }
}

pub(crate) fn item(settings: &Settings, app: &record::App, domains: &[Domain]) -> AppListItem {
    AppListItem {
        id: app.id.to_string(),
        name: app.name.clone(),
        organization_id: app.organization_id.to_string(),
        updated_at: Some(app.updated_at),
        created_at: Some(app.created_at),
        domains: domains_of(settings, app, domains),
        status: app.status,
        messages: app.messages.clone(),
    }
}

fn domains_of(
    settings: &Settings,
    app: &record::App,
    domains: &[Domain],
) -> Vec<crate::wire::domain::Domain> {
    domains
        .iter()
        .filter(|domain| domain.app_id == Some(app.id))
        .map(|domain| domain::domain(settings, domain))
        .collect()
}
