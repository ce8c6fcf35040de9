//! Projects: groups of services, secrets and domains inside an organization.

use tram_store::{filter, intent::ProjectEdit};
use tram_types::ProjectId;

use super::credentials::{Mask, texts};
use crate::{
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    views,
    wire::project::{
        CreateProject, CreateProjectReply, DeleteProjectReply, GetProjectReply, ListProjectsReply, Project,
        UpdateProjectReply,
    },
};

crate::query! {
    /// Which projects.
    struct Filters {
        page: Page,
        name: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/projects", "ListProjects", list),
        post("/v1/projects", "CreateProject", create),
        get("/v1/projects/{id}", "GetProject", read),
        put("/v1/projects/{id}", "UpdateProject", update),
        patch("/v1/projects/{id}", "UpdateProject2", update),
        delete("/v1/projects/{id}", "DeleteProject", remove),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListProjectsReply, Error> {
    let page = call.query.page;
    let filter = filter::Projects {
        name: call.query.name,
        ids: Vec::new(),
    };
    let store = &call.api.store;
    let listed = store
        .list_projects(call.caller.organization, &filter, page.stored())
        .await?;
    let counts = store.project_service_counts(call.caller.organization).await?;
    Ok(ListProjectsReply {
        projects: listed
            .items
            .iter()
            .map(|project| {
                let services = counts.get(&project.id).copied().unwrap_or(0);
                views::organization::project(project, services)
            })
            .collect(),
        limit: page.limit,
        offset: page.offset,
    })
}

async fn create(call: Call<Nothing, CreateProject>) -> Result<CreateProjectReply, Error> {
    let wrong = texts(&call.body.name, &call.body.description);
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let project = call
        .api
        .store
        .create_project(
            call.caller.organization,
            ProjectId::random(),
            &call.body.name,
            &call.body.description,
        )
        .await?;
    Ok(CreateProjectReply {
        project: Some(views::organization::project(&project, 0)),
    })
}

async fn read(call: Call) -> Result<GetProjectReply, Error> {
    let id: ProjectId = call.id("id")?;
    Ok(GetProjectReply {
        project: Some(show(&call, id).await?),
    })
}

async fn show<Q, B>(call: &Call<Q, B>, id: ProjectId) -> Result<Project, Error> {
    let store = &call.api.store;
    let project = store.project(call.caller.organization, id).await?;
    let counts = store.project_service_counts(call.caller.organization).await?;
    let services = counts.get(&id).copied().unwrap_or(0);
    Ok(views::organization::project(&project, services))
}

async fn update(call: Call<Mask, Project>) -> Result<UpdateProjectReply, Error> {
    let id: ProjectId = call.id("id")?;
    let current = show(&call, id).await?;
    let wanted: Project = call.merged(&current, call.query.update_mask.as_deref())?;
    let wrong = texts(&wanted.name, &wanted.description);
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let edit = ProjectEdit {
        name: Some(wanted.name),
        description: Some(wanted.description),
    };
    call.api
        .store
        .update_project(call.caller.organization, id, &edit)
        .await?;
    Ok(UpdateProjectReply {
        project: Some(show(&call, id).await?),
    })
}

async fn remove(call: Call) -> Result<DeleteProjectReply, Error> {
    let id: ProjectId = call.id("id")?;
    call.api
        .store
        .delete_project(call.caller.organization, id)
        .await?;
    Ok(DeleteProjectReply {})
}
