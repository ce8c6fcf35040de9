//! Snapshots of instances: taken, listed, shown, removed, and what a service that starts from one is made of.

use tram_store::{filter, record};
use tram_types::{
    InstanceId, InstanceSnapshotId, OrganizationId, ProjectId, ServiceId,
    definition::{DeploymentDefinition, DockerSource},
    status::{InstanceSnapshotStatus, InstanceSnapshotType, InstanceStatus},
};

use crate::{
    endpoint::{Call, Endpoint, delete, get, post},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{self, count, part},
    wire::instance_snapshot::{
        CreateInstanceSnapshotReply, CreateInstanceSnapshotRequest, DeleteInstanceSnapshotReply,
        GetInstanceSnapshotReply, InstanceSnapshot, ListInstanceSnapshotsReply,
    },
};

/// Longest name, in characters: upstream's.
const NAME_CHARACTERS_MAX: usize = 64;
/// Most snapshots of an organization. Each may grow to the size of a disk: together they must not fill the machine
/// without somebody noticing.
pub(crate) const FILESYSTEM_MAX: u32 = 1000;

crate::query! {
    /// Which snapshots.
    struct Filters {
        page: Page,
        name: Option<String>,
        statuses: Vec<InstanceSnapshotStatus>,
        r#type: Option<InstanceSnapshotType>,
        service_id: Option<ServiceId>,
        project_id: Option<ProjectId>,
        ids: Vec<InstanceSnapshotId>,
    }
}

crate::query! {
    /// How a snapshot is removed (beyond Koyeb).
    struct Removal {
        when_unused: bool,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/instance_snapshots", "ListInstanceSnapshots", list),
        post("/v1/instance_snapshots", "CreateInstanceSnapshot", create),
        get("/v1/instance_snapshots/{id}", "GetInstanceSnapshot", read),
        delete("/v1/instance_snapshots/{id}", "DeleteInstanceSnapshot", remove),
    ]
}

fn view(snapshot: &record::InstanceSnapshot) -> InstanceSnapshot {
    InstanceSnapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.clone(),
        created_at: Some(snapshot.created_at),
        updated_at: Some(snapshot.updated_at),
        available_at: snapshot.available_at,
        deleted_at: snapshot.deleted_at,
        organization_id: snapshot.organization_id.to_string(),
        project_id: views::id(snapshot.project_id),
        service_id: snapshot.service_id.to_string(),
        deployment_id: snapshot.deployment_id.to_string(),
        regional_deployment_id: snapshot.regional_deployment_id.to_string(),
        instance_id: snapshot.instance_id.to_string(),
        status: snapshot.status,
        r#type: snapshot.kind,
        version: tram_types::Int64(snapshot.version),
        messages: snapshot.messages.clone(),
    }
}

async fn list(call: Call<Filters>) -> Result<ListInstanceSnapshotsReply, Error> {
    let query = call.query;
    let filter = filter::InstanceSnapshots {
        name: query.name,
        statuses: query.statuses,
        kind: query.r#type.filter(|kind| *kind != InstanceSnapshotType::Invalid),
        service_id: query.service_id,
        project_id: query.project_id.or(call.caller.project),
        ids: query.ids,
    };
    let page = query.page;
    let listed = call
        .api
        .store
        .list_instance_snapshots(call.caller.organization, &filter, page.stored())
        .await?;
    let total = count(listed.count);
    Ok(ListInstanceSnapshotsReply {
        has_next: page.has_next(total),
        instance_snapshots: listed.items.iter().map(view).collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
    })
}

async fn create(
    call: Call<Nothing, CreateInstanceSnapshotRequest>,
) -> Result<CreateInstanceSnapshotReply, Error> {
    let (api, organization, body) = (&call.api, call.caller.organization, &call.body);
    let length = body.name.chars().count();
    if length == 0 || length > NAME_CHARACTERS_MAX {
        return Err(Error::field(
            "name",
            format!("must have between 1 and {NAME_CHARACTERS_MAX} characters"),
        ));
    }
    match body.r#type {
        InstanceSnapshotType::Filesystem => {}
        // Said at once: clients wait ten minutes for a snapshot that fails.
        InstanceSnapshotType::Full => {
            return Err(Error::field(
                "type",
                "snapshots with processes and memory are not available on this installation: take a FILESYSTEM one",
            ));
        }
        InstanceSnapshotType::Invalid => {
            return Err(Error::field("type", "must be INSTANCE_SNAPSHOT_TYPE_FILESYSTEM"));
        }
    }
    let id = body
        .instance_id
        .parse::<InstanceId>()
        .map_err(|_| Error::field("instance_id", "there is no such instance"))?;
    let instance = match api.store.instance(organization, id).await {
        Ok(instance) => instance,
        Err(tram_store::Error::NotFound { .. }) => {
            return Err(Error::field("instance_id", "there is no such instance"));
        }
        Err(error) => return Err(error.into()),
    };
    if matches!(
        instance.status,
        InstanceStatus::Stopping | InstanceStatus::Stopped | InstanceStatus::Error
    ) {
        return Err(Error::field(
            "instance_id",
            "the instance is over, and its disk with it: take the snapshot of one that runs",
        ));
    }
    let used = api
        .store
        .count_instance_snapshots(organization, InstanceSnapshotType::Filesystem)
        .await?;
    if used >= u64::from(FILESYSTEM_MAX) {
        return Err(Error::Precondition(format!(
            "there are {used} instance snapshots, of {FILESYSTEM_MAX} that an organization may have: remove some"
        )));
    }
    let service = api.store.service(organization, instance.service_id).await?;
    let deployment = api.store.deployment(organization, instance.deployment_id).await?;
    let definition: DeploymentDefinition = part(&deployment.definition);
    let now = api.clock.now();
    let snapshot = record::InstanceSnapshot {
        id: InstanceSnapshotId::random(),
        organization_id: organization,
        project_id: service.project_id,
        service_id: instance.service_id,
        deployment_id: instance.deployment_id,
        regional_deployment_id: instance.regional_deployment_id,
        instance_id: id,
        disk_bytes: disk_bytes(api, &instance.instance_type),
        region: instance.region,
        name: body.name.clone(),
        kind: body.r#type,
        status: InstanceSnapshotStatus::Creating,
        messages: Vec::new(),
        docker: crate::definition::value(&definition.docker)?,
        version: 1,
        available_at: None,
        deleted_at: None,
        created_at: now,
        updated_at: now,
    };
    api.store.create_instance_snapshot(&snapshot).await?;
    Ok(CreateInstanceSnapshotReply {
        instance_snapshot: Some(view(&snapshot)),
    })
}

async fn read(call: Call) -> Result<GetInstanceSnapshotReply, Error> {
    let id: InstanceSnapshotId = call.id("id")?;
    let snapshot = call
        .api
        .store
        .instance_snapshot(call.caller.organization, id)
        .await?;
    Ok(GetInstanceSnapshotReply {
        instance_snapshot: Some(view(&snapshot)),
    })
}

/// While services start from it the answer says so, unless it is to go `when_unused`: with the last of them, with nothing
/// new starting from it meanwhile.
async fn remove(call: Call<Removal>) -> Result<DeleteInstanceSnapshotReply, Error> {
    let id: InstanceSnapshotId = call.id("id")?;
    let snapshot = call
        .api
        .store
        .delete_instance_snapshot(call.caller.organization, id, call.query.when_unused)
        .await?;
    Ok(DeleteInstanceSnapshotReply {
        instance_snapshot: Some(view(&snapshot)),
    })
}

fn disk_bytes(api: &ApiState, instance_type: &str) -> u64 {
    api.catalog
        .instance_type(instance_type)
        .map_or(0, |kind| kind.disk_bytes)
}

/// Makes a definition one that starts from the snapshot named in `text`, or says why it cannot. The disk holds what
/// differs from its image, so the image is the snapshot's, whatever the definition names.
pub(crate) async fn start_from(
    api: &ApiState,
    organization: OrganizationId,
    text: &str,
    definition: &mut DeploymentDefinition,
    prefix: &str,
) -> Result<(), Error> {
    let wrong = |message: String| Error::field(format!("{prefix}instance_snapshot_id"), message);
    let missing = || wrong(format!("there is no instance snapshot `{text}`"));
    let id = text.parse::<InstanceSnapshotId>().map_err(|_| missing())?;
    let snapshot = match api.store.instance_snapshot(organization, id).await {
        Ok(snapshot) => snapshot,
        Err(tram_store::Error::NotFound { .. }) => return Err(missing()),
        Err(error) => return Err(error.into()),
    };
    if snapshot.status != InstanceSnapshotStatus::Available {
        return Err(wrong(format!(
            "the instance snapshot cannot be used: its status is {}",
            snapshot.status
        )));
    }
    for instance_type in &definition.instance_types {
        if disk_bytes(api, &instance_type.r#type) < snapshot.disk_bytes {
            return Err(wrong(format!(
                "the snapshot's disk is larger than that of instance type {}: choose a larger type",
                instance_type.r#type
            )));
        }
    }
    let elsewhere = |written: &String| {
        api.catalog
            .region(written)
            .is_none_or(|region| region.id != snapshot.region)
    };
    if definition.regions.iter().any(elsewhere) {
        return Err(wrong(format!(
            "the instance snapshot is in region {}: name that one alone",
            snapshot.region
        )));
    }
    let kept: Option<DockerSource> = part(&snapshot.docker);
    if let Some(kept) = kept {
        let docker = definition.docker.get_or_insert_default();
        docker.image = kept.image;
        docker.image_registry_secret = kept.image_registry_secret;
    }
    Ok(())
}
