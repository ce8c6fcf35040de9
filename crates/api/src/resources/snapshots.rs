//! Snapshots of volumes: taken, listed, renamed, deleted.

use tram_store::{
    filter,
    intent::{NewSnapshot, SnapshotEdit},
};
use tram_types::{
    FieldViolation, OrganizationId, SnapshotId, VolumeId, names::check_volume_name, status::SnapshotStatus,
};

use super::{organizations::project_of, volumes::resolved};
use crate::{
    endpoint::{Call, Endpoint, delete, get, post},
    error::Error,
    query::{Nothing, Page},
    views::{self, count},
    wire::snapshot::{
        CreateSnapshotReply, CreateSnapshotRequest, DeleteSnapshotReply, GetSnapshotReply,
        ListSnapshotsReply, UpdateSnapshot, UpdateSnapshotReply,
    },
};

crate::query! {
    /// Which snapshots.
    struct Filters {
        page: Page,
        organization_id: Option<OrganizationId>,
        statuses: Vec<SnapshotStatus>,
        region: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/snapshots", "ListSnapshots", list),
        post("/v1/snapshots", "CreateSnapshot", create),
        get("/v1/snapshots/{id}", "GetSnapshot", read),
        post("/v1/snapshots/{id}", "UpdateSnapshot", update),
        delete("/v1/snapshots/{id}", "DeleteSnapshot", remove),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListSnapshotsReply, Error> {
    let query = call.query;
    let page = query.page;
    let own = call.caller.organization;
    if query.organization_id.is_some_and(|other| other != own) {
        // Of others there is nothing to see.
        return Ok(ListSnapshotsReply {
            limit: page.limit,
            offset: page.offset,
            ..ListSnapshotsReply::default()
        });
    }
    let filter = filter::Snapshots {
        statuses: query.statuses,
        region: query.region.map(|id| resolved(&call.api, id)),
        project_id: call.caller.project,
    };
    let listed = call.api.store.list_snapshots(own, &filter, page.stored()).await?;
    Ok(ListSnapshotsReply {
        snapshots: listed.items.iter().map(views::volume::snapshot).collect(),
        limit: page.limit,
        offset: page.offset,
        has_next: page.has_next(count(listed.count)),
    })
}

async fn create(call: Call<Nothing, CreateSnapshotRequest>) -> Result<CreateSnapshotReply, Error> {
    let project_id = project_of(&call, &call.body.project_id).await?;
    let organization = call.caller.organization;
    let body = &call.body;
    if let Err(rule) = check_volume_name(&body.name) {
        return Err(Error::field("name", rule));
    }
    let unknown = || Error::field("parent_volume_id", "there is no such volume");
    let volume: VolumeId = body.parent_volume_id.parse().map_err(|_| unknown())?;
    let parent = match call.api.store.volume(organization, volume).await {
        Err(tram_store::Error::NotFound { .. }) => return Err(unknown()),
        other => other?,
    };
    let new = NewSnapshot {
        id: SnapshotId::random(),
        organization_id: organization,
        project_id: project_id.or(parent.project_id),
        name: body.name.clone(),
        volume_id: volume,
    };
    let snapshot = call.api.store.create_snapshot(new).await?;
    Ok(CreateSnapshotReply {
        snapshot: Some(views::volume::snapshot(&snapshot)),
    })
}

async fn read(call: Call) -> Result<GetSnapshotReply, Error> {
    let id: SnapshotId = call.id("id")?;
    let snapshot = call.api.store.snapshot(call.caller.organization, id).await?;
    Ok(GetSnapshotReply {
        snapshot: Some(views::volume::snapshot(&snapshot)),
    })
}

async fn update(call: Call<Nothing, UpdateSnapshot>) -> Result<UpdateSnapshotReply, Error> {
    let id: SnapshotId = call.id("id")?;
    let organization = call.caller.organization;
    let name = call.body.name.clone();
    if let Err(rule) = check_volume_name(&name) {
        return Err(Error::Invalid(vec![FieldViolation::new("name", rule)]));
    }
    let edit = SnapshotEdit { name: Some(name) };
    let snapshot = call.api.store.update_snapshot(organization, id, &edit).await?;
    Ok(UpdateSnapshotReply {
        snapshot: Some(views::volume::snapshot(&snapshot)),
    })
}

async fn remove(call: Call) -> Result<DeleteSnapshotReply, Error> {
    let id: SnapshotId = call.id("id")?;
    let store = &call.api.store;
    let snapshot = store
        .request_snapshot_deletion(call.caller.organization, id)
        .await?;
    Ok(DeleteSnapshotReply {
        snapshot: Some(views::volume::snapshot(&snapshot)),
    })
}
