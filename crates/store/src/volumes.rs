//! Volumes, their snapshots, and which service has which volume.
//!
//! A volume belongs to one service at a time, from the moment a deployment of it that names the volume is recorded (in
//! the same transaction, so two services never get one) until no deployment that may run names it any more and its site
//! has confirmed that no instance has it.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::AnyConnection;
use tram_types::{
    OrganizationId, ServiceId, SnapshotId, Timestamp, VolumeId,
    status::{PersistentVolumeStatus, SnapshotStatus},
};

use crate::{
    Change, Store,
    column::Column as _,
    error::{Error, Result},
    filter::{self, Listed, Page},
    history::insert_events,
    intent::{NewEvent, NewSnapshot, NewVolume, SnapshotEdit, VolumeEdit, VolumeSeen},
    leadership::check_epoch,
    record::{Service, Snapshot, Volume},
    sql::Sql,
    store::get_in,
};

/// Deployments that will never run again. One that a paused service would be resumed with is its latest.
const OVER: &str = "'STOPPED', 'ERROR', 'CANCELED', 'STASHED'";

impl Store {
    /// Records that a volume is wanted.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name, [`Error::NotFound`] for the project.
    pub async fn create_volume(&self, new: NewVolume) -> Result<Volume> {
        self.check_owned(new.organization_id, new.project_id, None)
            .await?;
        let now = self.now();
        let volume = Volume {
            id: new.id,
            organization_id: new.organization_id,
            project_id: new.project_id,
            name: new.name,
            region: new.region,
            max_size: new.max_size,
            made_size: 0,
            used_bytes: 0,
            read_only: new.read_only,
            snapshot_id: new.snapshot_id,
            service_id: None,
            status: PersistentVolumeStatus::Detached,
            created_at: now,
            updated_at: now,
        };
        let changes = [Change::Volume(volume.id)];
        self.write_one(Sql::insert(&volume), &changes, "making a volume")
            .await?;
        Ok(volume)
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn volume(&self, organization: OrganizationId, id: VolumeId) -> Result<Volume> {
        self.get(organization, id, "reading a volume").await
    }

    /// Volumes, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_volumes(
        &self,
        organization: OrganizationId,
        filter: &filter::Volumes,
        page: Page,
    ) -> Result<Listed<Volume>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND service_id = ", filter.service_id.as_ref());
        condition.push_some(" AND region = ", filter.region.as_ref());
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_some(" AND project_id = ", filter.project_id.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(condition, "created_at DESC, id DESC", page, "listing volumes")
            .await
    }

    /// Every volume of every organization, by id: for the controller.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn volumes_unscoped(&self) -> Result<Vec<Volume>> {
        const DOING: &str = "reading all volumes";
        Sql::select::<Volume>("ORDER BY id")
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// Changes a volume. It is never made smaller.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name, [`Error::Conflict`] when it is being deleted or would
    /// be smaller.
    pub async fn update_volume(
        &self,
        organization: OrganizationId,
        id: VolumeId,
        edit: &VolumeEdit,
    ) -> Result<Volume> {
        const DOING: &str = "changing a volume";
        let least = edit.max_size.unwrap_or(u32::MAX);
        let sql = Sql::update::<Volume>(edit.cells(), self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization)
            .with(" AND status <> ", &PersistentVolumeStatus::Deleting)
            .with(" AND max_size <= ", &least);
        match self.write_one(sql, &[Change::Volume(id)], DOING).await? {
            0 => {
                self.volume(organization, id).await?;
                let reason = "it is being deleted, or was made larger meanwhile";
                Err(Error::conflict("volume", id, reason))
            }
            _ => self.volume(organization, id).await,
        }
    }

    /// Records that a volume should go. What no service has any more is let go first.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] while a service or an instance has it.
    pub async fn request_volume_deletion(
        &self,
        organization: OrganizationId,
        id: VolumeId,
    ) -> Result<Volume> {
        const DOING: &str = "recording that a volume should go";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let volume: Volume = get_in(&mut transaction, organization, id, DOING).await?;
        release_in(&mut transaction, Some(id), now, DOING).await?;
        let cells = vec![("status", PersistentVolumeStatus::Deleting.to_cell())];
        let mut sql = Sql::update::<Volume>(cells, now).with(" WHERE id = ", &id);
        sql.add(" AND service_id IS NULL");
        let sql = sql.with(" AND status <> ", &PersistentVolumeStatus::Attached);
        if sql.run(&mut transaction, DOING).await? == 0 {
            let reason = match volume.service_id {
                Some(service) => format!("it is still attached to service {service}"),
                None => "it is still attached to an instance".to_owned(),
            };
            return Err(Error::conflict("volume", id, reason));
        }
        let volume = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &[Change::Volume(id)], DOING).await?;
        Ok(volume)
    }

    /// Records what was seen of a volume, if it still has the status that was known: for the controller.
    ///
    /// # Errors
    /// [`Error::Conflict`]: read again.
    pub async fn apply_volume(&self, known: &Volume, seen: &VolumeSeen, events: Vec<NewEvent>) -> Result<()> {
        const DOING: &str = "recording what was seen of a volume";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let sql = Sql::update::<Volume>(seen.cells(), now)
            .with(" WHERE id = ", &known.id)
            .with(" AND status = ", &known.status);
        if sql.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::conflict(
                "volume",
                known.id,
                "its status changed meanwhile",
            ));
        }
        insert_events(&mut transaction, events, now, DOING).await?;
        self.commit(transaction, DOING).await
    }

    /// Forgets a volume whose site has confirmed that it is gone.
    ///
    /// # Errors
    /// [`Error::Conflict`] when nobody asked to delete it.
    pub async fn remove_volume(&self, id: VolumeId) -> Result<()> {
        const DOING: &str = "forgetting a volume";
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let sql = Sql::new("DELETE FROM volumes WHERE id = $1 AND status = $2")
            .bind(&id)
            .bind(&PersistentVolumeStatus::Deleting);
        if sql.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::conflict("volume", id, "nobody asked to delete it"));
        }
        self.commit(transaction, DOING).await
    }

    /// Takes volumes from services that do not name them any more and whose instances are gone, of every organization.
    /// Tells how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn release_volumes(&self) -> Result<u64> {
        const DOING: &str = "letting volumes go";
        let mut transaction = self.database().write(DOING).await?;
        let released = release_in(&mut transaction, None, self.now(), DOING).await?;
        self.commit(transaction, DOING).await?;
        Ok(released)
    }

    /// Records that a snapshot is wanted.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name; [`Error::NotFound`] for the volume; [`Error::Conflict`] when that is not
    /// there yet, or on its way out.
    pub async fn create_snapshot(&self, new: NewSnapshot) -> Result<Snapshot> {
        const DOING: &str = "making a snapshot";
        self.check_owned(new.organization_id, new.project_id, None)
            .await?;
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let volume: Volume = get_in(&mut transaction, new.organization_id, new.volume_id, DOING).await?;
        if volume.status == PersistentVolumeStatus::Deleting || volume.made_size == 0 {
            let reason = "it is being made or deleted, and has nothing to keep";
            return Err(Error::conflict("volume", volume.id, reason));
        }
        let snapshot = Snapshot {
            id: new.id,
            organization_id: new.organization_id,
            project_id: new.project_id,
            name: new.name,
            volume_id: volume.id,
            region: volume.region,
            size: volume.made_size,
            status: SnapshotStatus::Creating,
            created_at: now,
            updated_at: now,
        };
        Sql::insert(&snapshot).run(&mut transaction, DOING).await?;
        self.finish(transaction, &[Change::Volume(volume.id)], DOING)
            .await?;
        Ok(snapshot)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn snapshot(&self, organization: OrganizationId, id: SnapshotId) -> Result<Snapshot> {
        self.get(organization, id, "reading a snapshot").await
    }

    /// Snapshots, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_snapshots(
        &self,
        organization: OrganizationId,
        filter: &filter::Snapshots,
        page: Page,
    ) -> Result<Listed<Snapshot>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND region = ", filter.region.as_ref());
        condition.push_some(" AND project_id = ", filter.project_id.as_ref());
        condition.push_any_of("status", &filter.statuses);
        self.list(condition, "created_at DESC, id DESC", page, "listing snapshots")
            .await
    }

    /// Snapshots on their way: for the controller.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn snapshots_under_way(&self) -> Result<Vec<Snapshot>> {
        const DOING: &str = "reading the snapshots on their way";
        let mut sql = Sql::select::<Snapshot>("WHERE 1 = 1");
        sql.push_any_of("status", &[SnapshotStatus::Creating, SnapshotStatus::Deleting]);
        sql.add(" ORDER BY created_at, id");
        sql.all(&mut *self.database().read(DOING).await?, DOING).await
    }

    /// Changes a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_snapshot(
        &self,
        organization: OrganizationId,
        id: SnapshotId,
        edit: &SnapshotEdit,
    ) -> Result<Snapshot> {
        let sql = Sql::update::<Snapshot>(edit.cells(), self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        match self.write_one(sql, &[], "changing a snapshot").await? {
            0 => Err(Error::not_found("snapshot", id)),
            _ => self.snapshot(organization, id).await,
        }
    }

    /// Records that a snapshot should go.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] while a volume is being made from it.
    pub async fn request_snapshot_deletion(
        &self,
        organization: OrganizationId,
        id: SnapshotId,
    ) -> Result<Snapshot> {
        const DOING: &str = "recording that a snapshot should go";
        let mut transaction = self.database().write(DOING).await?;
        let snapshot: Snapshot = get_in(&mut transaction, organization, id, DOING).await?;
        let used = Sql::new("SELECT COUNT(*) AS value FROM volumes WHERE snapshot_id = $1 AND made_size = 0")
            .bind(&id)
            .value::<u64>(&mut transaction, DOING)
            .await?;
        if used != Some(0) {
            return Err(Error::conflict("snapshot", id, "a volume is being made from it"));
        }
        let cells = vec![("status", SnapshotStatus::Deleting.to_cell())];
        Sql::update::<Snapshot>(cells, self.now())
            .with(" WHERE id = ", &id)
            .run(&mut transaction, DOING)
            .await?;
        let changes = [Change::Volume(snapshot.volume_id)];
        let snapshot = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &changes, DOING).await?;
        Ok(snapshot)
    }

    /// Records that a snapshot is there, if it is still wanted: for the controller.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is not wanted any more.
    pub async fn confirm_snapshot(&self, id: SnapshotId, event: NewEvent) -> Result<()> {
        const DOING: &str = "recording that a snapshot is there";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let cells = vec![("status", SnapshotStatus::Available.to_cell())];
        let sql = Sql::update::<Snapshot>(cells, now)
            .with(" WHERE id = ", &id)
            .with(" AND status = ", &SnapshotStatus::Creating);
        if sql.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::conflict("snapshot", id, "it is not wanted any more"));
        }
        insert_events(&mut transaction, vec![event], now, DOING).await?;
        self.commit(transaction, DOING).await
    }

    /// Forgets a snapshot that is gone, or that could not be made.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn remove_snapshot(&self, id: SnapshotId, events: Vec<NewEvent>) -> Result<()> {
        const DOING: &str = "forgetting a snapshot";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        Sql::new("DELETE FROM snapshots WHERE id = $1 AND status <> $2")
            .bind(&id)
            .bind(&SnapshotStatus::Available)
            .run(&mut transaction, DOING)
            .await?;
        insert_events(&mut transaction, events, now, DOING).await?;
        self.commit(transaction, DOING).await
    }
}

/// Gives a service the volumes that a new deployment of it names, or refuses the deployment.
pub(crate) async fn claim(
    connection: &mut AnyConnection,
    service: &Service,
    definition: &Value,
    now: Timestamp,
    doing: &'static str,
) -> Result<()> {
    for id in named(definition) {
        let Ok(id) = id.parse::<VolumeId>() else {
            return Err(Error::not_found("volume", id));
        };
        release_in(connection, Some(id), now, doing).await?;
        let sql = Sql::update::<Volume>(vec![("service_id", service.id.to_cell())], now)
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &service.organization_id)
            .with(" AND (service_id IS NULL OR service_id = ", &service.id)
            .with_text(")")
            .with(" AND status <> ", &PersistentVolumeStatus::Deleting);
        if sql.run(connection, doing).await? == 0 {
            let volume: Volume = get_in(connection, service.organization_id, id, doing).await?;
            let reason = match volume.service_id {
                Some(other) => format!("it is used by service {other}"),
                None => "it is being deleted".to_owned(),
            };
            return Err(Error::conflict("volume", id, reason));
        }
    }
    Ok(())
}

/// The volumes a definition names.
fn named(definition: &Value) -> BTreeSet<String> {
    let volumes = definition.get("volumes").and_then(Value::as_array);
    let ids = volumes
        .into_iter()
        .flatten()
        .filter_map(|volume| volume.get("id"));
    ids.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Takes volumes (or one) from services that are gone or name them in no deployment that may run, where no instance has
/// them.
async fn release_in(
    connection: &mut AnyConnection,
    id: Option<VolumeId>,
    now: Timestamp,
    doing: &'static str,
) -> Result<u64> {
    let mut sql = Sql::update::<Volume>(vec![("service_id", None::<ServiceId>.to_cell())], now);
    sql.add(" WHERE service_id IS NOT NULL");
    sql.push_some(" AND id = ", id.as_ref());
    sql.push(" AND status <> ", &PersistentVolumeStatus::Attached);
    sql.add(
        " AND NOT EXISTS (SELECT 1 FROM deployments JOIN services ON services.id = deployments.service_id \
         WHERE deployments.service_id = volumes.service_id AND deployments.definition LIKE '%' || volumes.id || '%' \
         AND (deployments.id = services.latest_deployment_id OR deployments.status NOT IN (",
    );
    sql.add(OVER);
    sql.add(")))");
    sql.run(connection, doing).await
}
