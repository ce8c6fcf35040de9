//! Organizations, projects and users as clients see them.
//!
//! There is no billing and no sign-up here, so the members that tell of them hold what makes every client show a
//! working account.

use tram_store::record;
use tram_types::Int64;

use super::{count, id};
use crate::wire::{
    account::User,
    organization::{Organization, PublicOrganization, PublicUser},
    project::Project,
};

pub(crate) fn organization(organization: &record::Organization) -> Organization {
    Organization {
        id: organization.id.to_string(),
        external_id: organization.id.to_string(),
        name: organization.name.clone(),
        company: true,
        has_payment_method: true,
        verified: true,
        default_project_id: id(organization.default_project_id),
        ..Organization::default()
    }
}

pub(crate) fn public_organization(organization: &record::Organization) -> PublicOrganization {
    PublicOrganization {
        id: organization.id.to_string(),
        name: organization.name.clone(),
        external_id: organization.id.to_string(),
        ..PublicOrganization::default()
    }
}

/// A user, as far as a token knows one: its id.
pub(crate) fn user(user_id: &str, name: &str) -> User {
    User {
        id: user_id.to_owned(),
        name: name.to_owned(),
        email_validated: true,
        ..User::default()
    }
}

pub(crate) fn public_user(user_id: &str, name: &str) -> PublicUser {
    PublicUser {
        id: user_id.to_owned(),
        name: name.to_owned(),
        ..PublicUser::default()
    }
}

pub(crate) fn project(project: &record::Project, services: u64) -> Project {
    Project {
        id: project.id.to_string(),
        name: project.name.clone(),
        description: project.description.clone(),
        organization_id: project.organization_id.to_string(),
        updated_at: Some(project.updated_at),
        created_at: Some(project.created_at),
        service_count: Int64(count(services)),
    }
}
