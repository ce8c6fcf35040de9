//! Snapshots of instances: wanted, made, used, removed.

use std::collections::BTreeMap;

use tram_types::{
    InstanceSnapshotId, OrganizationId, Timestamp,
    status::{InstanceSnapshotStatus, InstanceSnapshotType},
};

use crate::{
    Change, Store,
    error::{Error, Result},
    filter::{self, Listed, Page},
    record::InstanceSnapshot,
    sql::{Sql, read},
};

impl Store {
    /// Records that a snapshot is wanted.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the project, [`Error::Unavailable`].
    pub async fn create_instance_snapshot(&self, snapshot: &InstanceSnapshot) -> Result<()> {
        self.check_owned(snapshot.organization_id, snapshot.project_id, None)
            .await?;
        let changes = [Change::InstanceSnapshot(snapshot.id)];
        self.write_one(Sql::insert(snapshot), &changes, "making an instance snapshot")
            .await?;
        Ok(())
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn instance_snapshot(
        &self,
        organization: OrganizationId,
        id: InstanceSnapshotId,
    ) -> Result<InstanceSnapshot> {
        self.get(organization, id, "reading an instance snapshot").await
    }

    /// Snapshots, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_instance_snapshots(
        &self,
        organization: OrganizationId,
        filter: &filter::InstanceSnapshots,
        page: Page,
    ) -> Result<Listed<InstanceSnapshot>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        if filter.statuses.is_empty() {
            condition.push(" AND status <> ", &InstanceSnapshotStatus::Deleted);
        }
        condition.push_any_of("status", &filter.statuses);
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_some(" AND kind = ", filter.kind.as_ref());
        condition.push_some(" AND service_id = ", filter.service_id.as_ref());
        condition.push_some(" AND project_id = ", filter.project_id.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(
            condition,
            "created_at DESC, id DESC",
            page,
            "listing instance snapshots",
        )
        .await
    }

    /// How many snapshots of a type an organization has, or is about to have.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn count_instance_snapshots(
        &self,
        organization: OrganizationId,
        kind: InstanceSnapshotType,
    ) -> Result<u64> {
        const DOING: &str = "counting instance snapshots";
        let counted = Sql::new("SELECT COUNT(*) AS value FROM instance_snapshots")
            .with(" WHERE organization_id = ", &organization)
            .with(" AND kind = ", &kind)
            .with(" AND status <> ", &InstanceSnapshotStatus::Deleted)
            .value::<u64>(&mut *self.database().read(DOING).await?, DOING)
            .await?;
        Ok(counted.unwrap_or(0))
    }

    /// How many bytes the snapshots of an organization take on its machines' disks.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshot_bytes(&self, organization: OrganizationId) -> Result<u64> {
        const DOING: &str = "adding up the instance snapshots";
        let bytes =
            Sql::new("SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS value FROM instance_snapshot_sizes")
                .with(" WHERE organization_id = ", &organization)
                .value::<u64>(&mut *self.database().read(DOING).await?, DOING)
                .await?;
        Ok(bytes.unwrap_or(0))
    }

    /// How many bytes each of these takes; one that was not taken yet, or by a version that did not count, is left out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshot_sizes(
        &self,
        organization: OrganizationId,
        ids: &[InstanceSnapshotId],
    ) -> Result<BTreeMap<InstanceSnapshotId, u64>> {
        const DOING: &str = "reading the sizes of instance snapshots";
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut sql = Sql::new("SELECT id, bytes FROM instance_snapshot_sizes")
            .with(" WHERE organization_id = ", &organization);
        sql.push_any_of("id", ids);
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| Ok((read(row, "id", DOING)?, read(row, "bytes", DOING)?)))
            .collect()
    }

    /// The largest snapshots that can be used, largest first: what to remove when there is no room.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn largest_instance_snapshots(
        &self,
        organization: OrganizationId,
        limit: u32,
    ) -> Result<Vec<(String, u64)>> {
        const DOING: &str = "finding the largest instance snapshots";
        let sql = Sql::new(
            "SELECT instance_snapshots.name AS name, instance_snapshot_sizes.bytes AS bytes FROM instance_snapshots \
             JOIN instance_snapshot_sizes ON instance_snapshot_sizes.id = instance_snapshots.id",
        )
        .with(" WHERE instance_snapshots.organization_id = ", &organization)
        .with(" AND instance_snapshots.status = ", &InstanceSnapshotStatus::Available)
        .with(" ORDER BY instance_snapshot_sizes.bytes DESC, instance_snapshots.id LIMIT ", &limit);
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| Ok((read(row, "name", DOING)?, read(row, "bytes", DOING)?)))
            .collect()
    }

    /// Records that a snapshot was taken and what it takes; tells whether somebody still waits for it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshot_taken(&self, snapshot: &InstanceSnapshot, bytes: u64) -> Result<bool> {
        const DOING: &str = "recording that an instance snapshot was taken";
        let mut transaction = self.database().write(DOING).await?;
        let now = self.now();
        let moved = Sql::new("UPDATE instance_snapshots SET version = version + 1")
            .with(", status = ", &InstanceSnapshotStatus::Available)
            .with(", available_at = ", &now)
            .with(", updated_at = ", &now)
            .with(" WHERE id = ", &snapshot.id)
            .with(" AND status = ", &InstanceSnapshotStatus::Creating)
            .run(&mut transaction, DOING)
            .await?;
        if moved > 0 {
            Sql::new("DELETE FROM instance_snapshot_sizes")
                .with(" WHERE id = ", &snapshot.id)
                .run(&mut transaction, DOING)
                .await?;
            Sql::new("INSERT INTO instance_snapshot_sizes (id, organization_id, bytes)")
                .with(" VALUES (", &snapshot.id)
                .with(", ", &snapshot.organization_id)
                .with(", ", &bytes)
                .with_text(")")
                .run(&mut transaction, DOING)
                .await?;
        }
        self.finish(transaction, &[Change::InstanceSnapshot(snapshot.id)], DOING)
            .await?;
        Ok(moved > 0)
    }

    /// Takes a snapshot that turned out to be damaged out of use. It stays, and counts, until it is removed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn instance_snapshot_damaged(
        &self,
        organization: OrganizationId,
        id: InstanceSnapshotId,
        message: &str,
    ) -> Result<InstanceSnapshot> {
        let messages = vec![message.to_owned()];
        self.move_instance_snapshot(
            id,
            InstanceSnapshotStatus::Available,
            InstanceSnapshotStatus::Error,
            &messages,
        )
        .await?;
        self.instance_snapshot(organization, id).await
    }

    /// The oldest snapshots that are wanted and were not taken yet, whosever they are.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshots_to_take_unscoped(&self) -> Result<Vec<InstanceSnapshot>> {
        const DOING: &str = "reading the instance snapshots that wait";
        Sql::select::<InstanceSnapshot>("")
            .with("WHERE status = ", &InstanceSnapshotStatus::Creating)
            .with(" ORDER BY created_at, id LIMIT ", &filter::PAGE_ITEMS_MAX)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// The oldest snapshots that can be removed now, whosever they are: marked, and nothing starts from them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshots_to_remove_unscoped(&self) -> Result<Vec<InstanceSnapshot>> {
        const DOING: &str = "reading the instance snapshots to remove";
        Sql::select::<InstanceSnapshot>("")
            .with("WHERE status = ", &InstanceSnapshotStatus::Deleting)
            .with_text(
                " AND NOT EXISTS (SELECT 1 FROM deployments \
                 WHERE deployments.instance_snapshot_id = instance_snapshots.id",
            )
            .with_text(" AND deployments.status NOT IN ('CANCELED', 'STOPPED', 'ERROR')")
            .with_text(
                " AND EXISTS (SELECT 1 FROM services WHERE services.id = deployments.service_id \
                 AND services.desired <> 'DELETE'))",
            )
            .with(" ORDER BY created_at, id LIMIT ", &filter::PAGE_ITEMS_MAX)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// Snapshots that could not be taken and were given up, whosever they are, in the order of their ids after this one: an
    /// empty answer ends the list. One that was taken and turned out to be damaged is none of them, since it stays.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn instance_snapshots_given_up_unscoped(
        &self,
        after: Option<InstanceSnapshotId>,
    ) -> Result<Vec<InstanceSnapshot>> {
        const DOING: &str = "reading the instance snapshots that were given up";
        let mut sql = Sql::select::<InstanceSnapshot>("")
            .with("WHERE status = ", &InstanceSnapshotStatus::Error)
            .with_text(" AND available_at IS NULL");
        sql.push_some(" AND id > ", after.as_ref());
        sql.with(" ORDER BY id LIMIT ", &filter::PAGE_ITEMS_MAX)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// Moves a snapshot from one status to another; tells whether it was in the first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn move_instance_snapshot(
        &self,
        id: InstanceSnapshotId,
        from: InstanceSnapshotStatus,
        to: InstanceSnapshotStatus,
        messages: &Vec<String>,
    ) -> Result<bool> {
        let now = self.now();
        let mut sql = Sql::new("UPDATE instance_snapshots SET version = version + 1")
            .with(", status = ", &to)
            .with(", messages = ", messages)
            .with(", updated_at = ", &now);
        match to {
            InstanceSnapshotStatus::Available => sql.push(", available_at = ", &now),
            InstanceSnapshotStatus::Deleted => sql.push(", deleted_at = ", &now),
            _ => {}
        }
        const DOING: &str = "changing an instance snapshot";
        let sql = sql.with(" WHERE id = ", &id).with(" AND status = ", &from);
        // Of one transaction: what is removed must not count after a crash in between.
        let mut transaction = self.database().write(DOING).await?;
        let moved = sql.run(&mut transaction, DOING).await?;
        if moved > 0 && to == InstanceSnapshotStatus::Deleted {
            Sql::new("DELETE FROM instance_snapshot_sizes")
                .with(" WHERE id = ", &id)
                .run(&mut transaction, DOING)
                .await?;
        }
        let changes = [Change::InstanceSnapshot(id)];
        let changes: &[Change] = if moved > 0 { &changes } else { &[] };
        self.finish(transaction, changes, DOING).await?;
        Ok(moved > 0)
    }

    /// Forgets snapshots that were removed before this time.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn forget_instance_snapshots(&self, before: Timestamp) -> Result<u64> {
        let sql = Sql::new("DELETE FROM instance_snapshots")
            .with(" WHERE status = ", &InstanceSnapshotStatus::Deleted)
            .with(" AND deleted_at < ", &before);
        self.write_one(sql, &[], "forgetting instance snapshots").await
    }

    /// Marks a snapshot for removal, unless something that is not over starts from it. With `when_unused` it is marked
    /// all the same, and removed once nothing does.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`].
    pub async fn delete_instance_snapshot(
        &self,
        organization: OrganizationId,
        id: InstanceSnapshotId,
        when_unused: bool,
    ) -> Result<InstanceSnapshot> {
        const DOING: &str = "removing an instance snapshot";
        let mut transaction = self.database().write(DOING).await?;
        let used = Sql::new("SELECT service_id AS value FROM deployments")
            .with(" WHERE instance_snapshot_id = ", &id.to_string())
            .with(" AND organization_id = ", &organization)
            .with_text(
                " AND status NOT IN ('CANCELED', 'STOPPED', 'ERROR') \
                 AND EXISTS (SELECT 1 FROM services WHERE services.id = deployments.service_id \
                 AND services.desired <> 'DELETE') LIMIT 1",
            )
            .value::<String>(&mut transaction, DOING)
            .await?;
        if let Some(service) = used.filter(|_| !when_unused) {
            return Err(Error::conflict(
                "instance snapshot",
                id,
                format!("service {service} starts from it: delete that first"),
            ));
        }
        Sql::new("UPDATE instance_snapshots SET version = version + 1")
            .with(", status = ", &InstanceSnapshotStatus::Deleting)
            .with(", updated_at = ", &self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization)
            .with(" AND status <> ", &InstanceSnapshotStatus::Deleted)
            .run(&mut transaction, DOING)
            .await?;
        self.finish(transaction, &[Change::InstanceSnapshot(id)], DOING)
            .await?;
        self.instance_snapshot(organization, id).await
    }
}
