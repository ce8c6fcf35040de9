//! Snapshots of instances: taken, listed, shown, removed, and what a service that starts from one is made of.

use tram_site::Verdict;
use tram_store::{filter, record};
use tram_types::{
    InstanceId, InstanceSnapshotId, OrganizationId, ProjectId, ServiceId,
    definition::{DeploymentDefinition, DockerSource},
    status::{InstanceSnapshotStatus, InstanceSnapshotType, InstanceStatus},
    units::MIB,
};

use crate::{
    endpoint::{Call, Endpoint, delete, get, post},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{self, count, part},
    wire::instance_snapshot::{
        CreateInstanceSnapshotReply, CreateInstanceSnapshotRequest, DeleteInstanceSnapshotReply,
        GetInstanceSnapshotReply, InstanceSnapshot, ListInstanceSnapshotsReply, VerifyInstanceSnapshotReply,
    },
};

/// Longest name, in characters: upstream's.
const NAME_CHARACTERS_MAX: usize = 64;
/// So many of the largest snapshots are named where there is no room for more.
const NAMED: u32 = 3;

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
        post(
            "/v1/instance_snapshots/{id}/verify",
            "VerifyInstanceSnapshot",
            verify,
        ),
    ]
}

/// `bytes`: what it takes, where that is known.
fn view(snapshot: &record::InstanceSnapshot, bytes: Option<&u64>) -> InstanceSnapshot {
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
        stored_bytes: tram_types::Int64(count(bytes.copied().unwrap_or(0))),
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
    let ids: Vec<InstanceSnapshotId> = listed.items.iter().map(|snapshot| snapshot.id).collect();
    let sizes = call
        .api
        .store
        .instance_snapshot_sizes(call.caller.organization, &ids)
        .await?;
    let shown = listed.items.iter();
    Ok(ListInstanceSnapshotsReply {
        has_next: page.has_next(total),
        instance_snapshots: shown
            .map(|snapshot| view(snapshot, sizes.get(&snapshot.id)))
            .collect(),
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
    if body.r#type == InstanceSnapshotType::Invalid {
        return Err(Error::field(
            "type",
            "must be INSTANCE_SNAPSHOT_TYPE_FILESYSTEM or INSTANCE_SNAPSHOT_TYPE_FULL",
        ));
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
    // Said at once: clients wait ten minutes for a snapshot that fails.
    if body.r#type == InstanceSnapshotType::Full
        && api
            .sites
            .for_region(&instance.region)
            .is_some_and(|site| !site.capabilities().checkpoint)
    {
        return Err(Error::field(
            "type",
            "the machines of this region cannot keep processes and memory (`tram doctor` says why): take a FILESYSTEM one",
        ));
    }
    has_room(api, organization, body.r#type).await?;
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
        instance_snapshot: Some(view(&snapshot, None)),
    })
}

/// Refuses one snapshot more than there may be, and any while those there are take all the room they may. Whether this
/// one fits is known when it is taken.
async fn has_room(
    api: &ApiState,
    organization: OrganizationId,
    kind: InstanceSnapshotType,
) -> Result<(), Error> {
    let (used, most) = (
        api.store.count_instance_snapshots(organization, kind).await?,
        api.settings.snapshots_max,
    );
    let largest = || async {
        let largest = api.store.largest_instance_snapshots(organization, NAMED).await?;
        let names: Vec<String> = largest
            .iter()
            .map(|(name, bytes)| format!("`{name}` ({} MiB)", bytes.div_ceil(MIB)))
            .collect();
        Ok::<_, Error>(if names.is_empty() {
            "remove some".to_owned()
        } else {
            format!("remove some, the largest are {}", names.join(", "))
        })
    };
    if used >= u64::from(most) {
        return Err(Error::Precondition(format!(
            "there are {used} instance snapshots of this type, of {most} that an organization may have \
             (`snapshots_max`): {}",
            largest().await?
        )));
    }
    let Some(max) = api.settings.snapshot_bytes_max else {
        return Ok(());
    };
    let taken = api.store.instance_snapshot_bytes(organization).await?;
    if taken >= max {
        return Err(Error::Precondition(format!(
            "the organization's instance snapshots take {} of the {} MiB that they may (`snapshot_space_max`): {}",
            taken.div_ceil(MIB),
            max / MIB,
            largest().await?
        )));
    }
    Ok(())
}

/// Reads all of a snapshot. One that is damaged is taken out of use.
async fn verify(call: Call) -> Result<VerifyInstanceSnapshotReply, Error> {
    let id: InstanceSnapshotId = call.id("id")?;
    let (api, organization) = (&call.api, call.caller.organization);
    let mut snapshot = api.store.instance_snapshot(organization, id).await?;
    if snapshot.status != InstanceSnapshotStatus::Available {
        return Err(Error::Precondition(format!(
            "the instance snapshot cannot be verified: its status is {}",
            snapshot.status
        )));
    }
    let site = api
        .sites
        .for_region(&snapshot.region)
        .ok_or_else(|| Error::Precondition(format!("there is no region {} any more", snapshot.region)))?;
    let verdict = match site.verify_snapshot(id).await {
        Err(tram_site::Error::Refused { message }) => Verdict::Damaged(message),
        // Nothing broke: the message says what to do.
        Err(tram_site::Error::Unavailable {
            message,
            source: None,
        }) => return Err(Error::Unanswered(message)),
        verdict => verdict.map_err(|error| Error::Unavailable {
            message: "the snapshot cannot be read now: try again".to_owned(),
            source: Box::new(error),
        })?,
    };
    let (whole, message) = match verdict {
        Verdict::Whole => (true, String::new()),
        Verdict::Unknown => (
            false,
            "it has no checksums, since an older version took it: take a new one".to_owned(),
        ),
        Verdict::Damaged(what) => {
            let message = format!("it is damaged and is not used any more: {what}");
            snapshot = api
                .store
                .instance_snapshot_damaged(organization, id, &message)
                .await?;
            (false, message)
        }
    };
    let sizes = api.store.instance_snapshot_sizes(organization, &[id]).await?;
    Ok(VerifyInstanceSnapshotReply {
        instance_snapshot: Some(view(&snapshot, sizes.get(&id))),
        whole,
        message,
    })
}

async fn read(call: Call) -> Result<GetInstanceSnapshotReply, Error> {
    let id: InstanceSnapshotId = call.id("id")?;
    let snapshot = call
        .api
        .store
        .instance_snapshot(call.caller.organization, id)
        .await?;
    let sizes = call
        .api
        .store
        .instance_snapshot_sizes(call.caller.organization, &[id])
        .await?;
    Ok(GetInstanceSnapshotReply {
        instance_snapshot: Some(view(&snapshot, sizes.get(&id))),
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
        instance_snapshot: Some(view(&snapshot, None)),
    })
}

fn disk_bytes(api: &ApiState, instance_type: &str) -> u64 {
    api.catalog
        .instance_type(instance_type)
        .map_or(0, |kind| kind.disk_bytes)
}

/// The definition that a snapshot with processes was taken of, for those who give none: what goes on goes on as it was.
/// `None` for a snapshot of a disk, whose definition is for the new service to say, and for one that is not there.
pub(crate) async fn definition_of(
    api: &ApiState,
    organization: OrganizationId,
    text: &str,
) -> Result<Option<DeploymentDefinition>, Error> {
    let Ok(id) = text.parse::<InstanceSnapshotId>() else {
        return Ok(None);
    };
    let snapshot = match api.store.instance_snapshot(organization, id).await {
        Ok(snapshot) if snapshot.kind == InstanceSnapshotType::Full => snapshot,
        Ok(_) | Err(tram_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match api.store.deployment(organization, snapshot.deployment_id).await {
        Ok(deployment) => Ok(Some(part(&deployment.definition))),
        Err(tram_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
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
