//! Persistent volumes: made, listed, grown, deleted. What is done about them follows; see the controller's `volume`.

use tram_store::{
    filter,
    intent::{NewVolume, VolumeEdit},
    record,
};
use tram_types::{
    FieldViolation, ProjectId, ServiceId, SnapshotId, VolumeId,
    names::check_volume_name,
    status::{PersistentVolumeStatus, SnapshotStatus},
    units::GIB,
};

use super::organizations::project_of;
use crate::{
    endpoint::{Call, Endpoint, delete, get, post},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{self, count},
    wire::volume::{
        CreatePersistentVolumeReply, CreatePersistentVolumeRequest, DeletePersistentVolumeReply,
        GetPersistentVolumeReply, ListPersistentVolumesReply, UpdatePersistentVolume,
        UpdatePersistentVolumeReply,
    },
};

/// Largest volume, in GB: what ext4 holds with blocks of 4 KiB in a file of its own.
const SIZE_MAX_GB: u32 = 16 * 1024;

crate::query! {
    /// Which volumes.
    struct Filters {
        page: Page,
        service_id: Option<ServiceId>,
        region: Option<String>,
        name: Option<String>,
        project_id: Option<ProjectId>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/volumes", "ListPersistentVolumes", list),
        post("/v1/volumes", "CreatePersistentVolume", create),
        get("/v1/volumes/{id}", "GetPersistentVolume", read),
        post("/v1/volumes/{id}", "UpdatePersistentVolume", update),
        delete("/v1/volumes/{id}", "DeletePersistentVolume", remove),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListPersistentVolumesReply, Error> {
    let query = call.query;
    let filter = filter::Volumes {
        service_id: query.service_id,
        region: query.region.map(|id| resolved(&call.api, id)),
        name: query.name,
        project_id: query.project_id.or(call.caller.project),
        ids: Vec::new(),
    };
    let page = query.page;
    let store = &call.api.store;
    let listed = store
        .list_volumes(call.caller.organization, &filter, page.stored())
        .await?;
    Ok(ListPersistentVolumesReply {
        volumes: listed.items.iter().map(views::volume::volume).collect(),
        limit: page.limit,
        offset: page.offset,
        has_next: page.has_next(count(listed.count)),
    })
}

/// The region that an id leads to, or the id.
pub(super) fn resolved(api: &ApiState, id: String) -> String {
    api.catalog.region(&id).map_or(id, |region| region.id.clone())
}

async fn create(
    call: Call<Nothing, CreatePersistentVolumeRequest>,
) -> Result<CreatePersistentVolumeReply, Error> {
    let project_id = project_of(&call, &call.body.project_id).await?;
    let organization = call.caller.organization;
    let body = &call.body;
    let mut wrong = Vec::new();
    if let Err(rule) = check_volume_name(&body.name) {
        wrong.push(FieldViolation::new("name", rule));
    }
    let region = region_with_volumes(&call.api, &body.region, &mut wrong);
    let snapshot = match body.snapshot_id.as_str() {
        "" => None,
        given => Some(source(&call, given, region.as_deref()).await?),
    };
    let least = snapshot.as_ref().map_or(1, |snapshot| snapshot.size);
    // A snapshot says how large its volume was.
    let wanted = match (body.max_size, &snapshot) {
        (0, Some(snapshot)) => i64::from(snapshot.size),
        (given, _) => given,
    };
    let max_size = size(wanted, least, &mut wrong);
    let (Some(region), Some(max_size), true) = (region, max_size, wrong.is_empty()) else {
        return Err(Error::Invalid(wrong));
    };
    check_room(&call.api, &region, max_size).await?;
    let new = NewVolume {
        id: VolumeId::random(),
        organization_id: organization,
        project_id,
        name: body.name.clone(),
        region,
        max_size,
        read_only: body.read_only,
        snapshot_id: snapshot.map(|snapshot| snapshot.id),
    };
    let volume = call.api.store.create_volume(new).await?;
    Ok(CreatePersistentVolumeReply {
        volume: Some(views::volume::volume(&volume)),
    })
}

/// The resolved region, if volumes can be made there.
fn region_with_volumes(api: &ApiState, given: &str, wrong: &mut Vec<FieldViolation>) -> Option<String> {
    let Some(region) = api.catalog.region(given) else {
        let known = api.catalog.region_ids();
        wrong.push(FieldViolation::new(
            "region",
            format!("there is no such region here: use one of {known}"),
        ));
        return None;
    };
    if !has_volumes(api, &region.id) {
        wrong.push(FieldViolation::new(
            "region",
            format!("the machines of region `{}` keep no volumes", region.id),
        ));
        return None;
    }
    Some(region.id.clone())
}

/// Whether volumes can be made in a (resolved) region: asked of its site, which knows.
pub(crate) fn has_volumes(api: &ApiState, region: &str) -> bool {
    let site = api.sites.for_region(region);
    site.is_some_and(|site| site.volumes().is_some())
}

/// The snapshot that a volume is to be made from.
async fn source(
    call: &Call<Nothing, CreatePersistentVolumeRequest>,
    given: &str,
    region: Option<&str>,
) -> Result<record::Snapshot, Error> {
    let unknown = || Error::field("snapshot_id", "there is no such snapshot");
    let id: SnapshotId = given.parse().map_err(|_| unknown())?;
    let snapshot = match call.api.store.snapshot(call.caller.organization, id).await {
        Err(tram_store::Error::NotFound { .. }) => return Err(unknown()),
        other => other?,
    };
    if snapshot.status != SnapshotStatus::Available {
        let rule = format!("the snapshot is {}: wait until it is available", snapshot.status);
        return Err(Error::field("snapshot_id", rule));
    }
    if region.is_some_and(|region| region != snapshot.region) {
        let rule = format!(
            "the snapshot is in region `{}`: make the volume there",
            snapshot.region
        );
        return Err(Error::field("snapshot_id", rule));
    }
    Ok(snapshot)
}

fn size(given: i64, least: u32, wrong: &mut Vec<FieldViolation>) -> Option<u32> {
    let size = u32::try_from(given)
        .ok()
        .filter(|size| (least..=SIZE_MAX_GB).contains(size));
    if size.is_none() {
        wrong.push(FieldViolation::new(
            "max_size",
            format!("must be {least} to {SIZE_MAX_GB} GB, is {given}"),
        ));
    }
    size
}

/// Refuses what the machines have no room for: a volume is promised as a whole.
async fn check_room(api: &ApiState, region: &str, asked_gb: u32) -> Result<(), Error> {
    match room(api, region).await? {
        Some(room) if room < u64::from(asked_gb) * GIB => Err(Error::field(
            "max_size",
            format!(
                "there is not enough room: {asked_gb} GB are asked for, and the machines of region `{region}` can \
                 give {} GB",
                room / GIB
            ),
        )),
        _ => Ok(()),
    }
}

/// How many bytes of volumes could be made in a region; `None` without a bound.
pub(crate) async fn room(api: &ApiState, region: &str) -> Result<Option<u64>, Error> {
    let Some(site) = api.sites.for_region(region) else {
        return Ok(Some(0));
    };
    let Some(volumes) = site.volumes() else {
        return Ok(Some(0));
    };
    volumes.room().await.map_err(|error| Error::Unavailable {
        message: "the machines cannot say how much room there is for volumes: try again".to_owned(),
        source: error.into(),
    })
}

async fn read(call: Call) -> Result<GetPersistentVolumeReply, Error> {
    let id: VolumeId = call.id("id")?;
    let volume = call.api.store.volume(call.caller.organization, id).await?;
    Ok(GetPersistentVolumeReply {
        volume: Some(views::volume::volume(&volume)),
    })
}

async fn update(call: Call<Nothing, UpdatePersistentVolume>) -> Result<UpdatePersistentVolumeReply, Error> {
    let id: VolumeId = call.id("id")?;
    let organization = call.caller.organization;
    let current = call.api.store.volume(organization, id).await?;
    if current.status == PersistentVolumeStatus::Deleting {
        return Err(Error::Precondition("this volume is being deleted".to_owned()));
    }
    let mut wrong = Vec::new();
    let mut edit = VolumeEdit::default();
    if !call.body.name.is_empty() && call.body.name != current.name {
        if let Err(rule) = check_volume_name(&call.body.name) {
            wrong.push(FieldViolation::new("name", rule));
        }
        edit.name = Some(call.body.name.clone());
    }
    if call.body.max_size != 0 {
        edit.max_size = if (1..i64::from(current.max_size)).contains(&call.body.max_size) {
            wrong.push(FieldViolation::new(
                "max_size",
                format!("a volume can only grow, and this one has {} GB", current.max_size),
            ));
            None
        } else {
            size(call.body.max_size, current.max_size, &mut wrong)
        };
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let more = edit.max_size.map_or(0, |wanted| wanted - current.max_size);
    if more > 0 {
        check_room(&call.api, &current.region, more).await?;
    }
    let volume = call.api.store.update_volume(organization, id, &edit).await?;
    Ok(UpdatePersistentVolumeReply {
        volume: Some(views::volume::volume(&volume)),
    })
}

/// While it is attached the answer says so, in words that clients wait for.
async fn remove(call: Call) -> Result<DeletePersistentVolumeReply, Error> {
    let id: VolumeId = call.id("id")?;
    let store = &call.api.store;
    let volume = store
        .request_volume_deletion(call.caller.organization, id)
        .await?;
    Ok(DeletePersistentVolumeReply {
        volume: Some(views::volume::volume(&volume)),
    })
}
