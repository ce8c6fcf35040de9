//! Snapshots of instances and what they count.

use serde_json::Value;
use tram_types::{
    InstanceSnapshotId,
    status::{InstanceSnapshotStatus as Status, InstanceSnapshotType},
};

use super::fixture::Fixture;
use crate::{Store, record::InstanceSnapshot, sql::Sql};

const DOING: &str = "testing";

async fn change(store: &Store, statement: &'static str) {
    let mut connection = store.database().writer(DOING).await.unwrap();
    Sql::new(statement).run(&mut connection, DOING).await.unwrap();
}

async fn available(fixture: &Fixture) -> InstanceSnapshot {
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let instance = fixture.instance(&made).await;
    let now = fixture.clock_now();
    let snapshot = InstanceSnapshot {
        id: InstanceSnapshotId::random(),
        organization_id: organization,
        project_id: None,
        service_id: instance.service_id,
        deployment_id: instance.deployment_id,
        regional_deployment_id: instance.regional_deployment_id,
        instance_id: instance.id,
        region: "here".to_owned(),
        name: "kept".to_owned(),
        kind: InstanceSnapshotType::Full,
        status: Status::Creating,
        messages: Vec::new(),
        docker: Value::Null,
        disk_bytes: 1,
        version: 1,
        available_at: None,
        deleted_at: None,
        created_at: now,
        updated_at: now,
    };
    fixture.store.create_instance_snapshot(&snapshot).await.unwrap();
    assert!(fixture.store.instance_snapshot_taken(&snapshot, 7).await.unwrap());
    snapshot
}

pub(super) async fn a_snapshot_and_its_size_go_together(fixture: &Fixture) {
    let store = &fixture.store;
    let snapshot = available(fixture).await;
    let organization = snapshot.organization_id;
    assert_eq!(store.instance_snapshot_bytes(organization).await.unwrap(), 7);
    store
        .delete_instance_snapshot(organization, snapshot.id, false)
        .await
        .unwrap();
    let gone = || {
        store.move_instance_snapshot(
            snapshot.id,
            Status::Deleting,
            Status::Deleted,
            const { &Vec::new() },
        )
    };
    // Cut off in the middle: the second half cannot be done.
    change(store, "ALTER TABLE instance_snapshot_sizes RENAME TO elsewhere").await;
    gone().await.unwrap_err();
    change(store, "ALTER TABLE elsewhere RENAME TO instance_snapshot_sizes").await;
    let found = store.instance_snapshot(organization, snapshot.id).await.unwrap();
    assert_eq!(found.status, Status::Deleting, "neither half was done");
    assert_eq!(store.instance_snapshot_bytes(organization).await.unwrap(), 7);
    assert!(gone().await.unwrap());
    assert_eq!(store.instance_snapshot_bytes(organization).await.unwrap(), 0);
}

pub(super) async fn what_was_given_up_is_listed_and_what_is_damaged_is_not(fixture: &Fixture) {
    let store = &fixture.store;
    let damaged = available(fixture).await;
    store
        .instance_snapshot_damaged(damaged.organization_id, damaged.id, "its disk is gone")
        .await
        .unwrap();
    let mut given_up = Vec::new();
    for _ in 0..3 {
        let snapshot = InstanceSnapshot {
            id: InstanceSnapshotId::random(),
            ..damaged.clone()
        };
        store.create_instance_snapshot(&snapshot).await.unwrap();
        let why = vec!["no room".to_owned()];
        store
            .move_instance_snapshot(snapshot.id, Status::Creating, Status::Error, &why)
            .await
            .unwrap();
        given_up.push(snapshot.id);
    }
    let listed = async |after| -> Vec<InstanceSnapshotId> {
        let found = store.instance_snapshots_given_up_unscoped(after).await.unwrap();
        found.iter().map(|snapshot| snapshot.id).collect()
    };
    let all = listed(None).await;
    given_up.sort();
    assert_eq!(all, given_up);
    assert_eq!(listed(Some(all[0])).await, all[1..]);
    assert_eq!(listed(Some(all[2])).await, Vec::new());
}
