//! Snapshots of instances: several at a time, nobody waits for a stranger's, and nothing is left of what failed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::Notify, time::timeout};
use tram_controller::{driver::Reconciler as _, instance_snapshot};
use tram_store::record::InstanceSnapshot;
use tram_types::{
    Clock as _, DeploymentId, InstanceId, InstanceSnapshotId, RegionalDeploymentId, ServiceId,
    status::{InstanceSnapshotStatus as Status, InstanceSnapshotType},
};

use tram_testkit::{Failure, Taking};

use crate::world::World;

/// Longest wait for a condition; far above what any takes.
const DEADLINE: Duration = Duration::from_secs(20);

async fn want(world: &World, instance: InstanceId) -> InstanceSnapshotId {
    // The oldest come first.
    world.clock.advance(Duration::from_millis(1));
    let now = world.clock.now();
    let snapshot = InstanceSnapshot {
        id: InstanceSnapshotId::random(),
        organization_id: world.organization,
        project_id: None,
        service_id: ServiceId::random(),
        deployment_id: DeploymentId::random(),
        regional_deployment_id: RegionalDeploymentId::random(),
        instance_id: instance,
        region: "fra".to_owned(),
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
    world.store.create_instance_snapshot(&snapshot).await.unwrap();
    snapshot.id
}

async fn under_way(world: &World, wanted: &[InstanceSnapshotId]) {
    let wanted: BTreeSet<InstanceSnapshotId> = wanted.iter().copied().collect();
    let mut seen = world.site.instance_snapshots();
    let found = timeout(DEADLINE, seen.wait_for(|taking| taking.under_way == wanted)).await;
    let found = found.map(|found| drop(found.unwrap()));
    assert!(
        found.is_ok(),
        "{:?}, not {wanted:?}",
        world.site.instance_snapshots().borrow()
    );
}

/// Runs the reconciler for as long as this is not dropped.
fn keep_running(world: &World, signal: &Arc<Notify>) -> tokio::task::JoinSet<()> {
    let reconciler = instance_snapshot::Reconciler::new(&world.deps(), Arc::clone(signal));
    let signal = Arc::clone(signal);
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move {
        loop {
            reconciler.run().await.unwrap();
            signal.notified().await;
        }
    });
    running
}

async fn at_the_site(world: &World, is: impl FnMut(&Taking) -> bool) {
    let mut seen = world.site.instance_snapshots();
    let found = timeout(DEADLINE, seen.wait_for(is)).await;
    assert!(found.is_ok(), "{:?}", world.site.instance_snapshots().borrow());
}

async fn becomes(world: &World, id: InstanceSnapshotId, status: Status) {
    let look = async {
        while world
            .store
            .instance_snapshot(world.organization, id)
            .await
            .unwrap()
            .status
            != status
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, look).await.unwrap();
}

#[tokio::test]
async fn several_are_taken_at_a_time_and_later_ones_join_them() {
    let world = World::without_controller().await;
    world.site.keep_instance_snapshots();
    let signal = Arc::new(Notify::new());
    let reconciler = instance_snapshot::Reconciler::new(&world.deps(), Arc::clone(&signal));
    let busy = InstanceId::random();
    let long = want(&world, busy).await;
    let running = tokio::spawn(async move { reconciler.run().await });
    under_way(&world, &[long]).await;
    // While it is being taken those of others are, too, and a second one of the same is not.
    let second = want(&world, busy).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(want(&world, InstanceId::random()).await);
    }
    signal.notify_one();
    under_way(&world, &[long, others[0], others[1], others[2]]).await;
    for id in &others {
        world.site.let_be_taken(*id);
        becomes(&world, *id, Status::Available).await;
    }
    // What is not wanted any more goes meanwhile.
    world
        .store
        .delete_instance_snapshot(world.organization, others[0], false)
        .await
        .unwrap();
    signal.notify_one();
    becomes(&world, others[0], Status::Deleted).await;
    under_way(&world, &[long]).await;
    world.site.let_be_taken(long);
    under_way(&world, &[second]).await;
    becomes(&world, long, Status::Available).await;
    world.site.let_be_taken(second);
    becomes(&world, second, Status::Available).await;
    let report = timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    assert_eq!((report.taken, report.failed, report.removed), (7, 0, 1));
}

#[tokio::test]
async fn patience_begins_with_the_first_try_and_not_with_the_order() {
    let world = World::without_controller().await;
    world.site.keep_instance_snapshots();
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(want(&world, InstanceId::random()).await);
    }
    let last = want(&world, InstanceId::random()).await;
    world.site.let_fail(last, Failure::Unavailable);
    let signal = Arc::new(Notify::new());
    let _running = keep_running(&world, &signal);
    under_way(&world, &first).await;
    // It waits for longer than anybody has patience for, and has all of it left then.
    world.clock.advance(Duration::from_secs(600));
    for id in &first {
        world.site.let_be_taken(*id);
    }
    at_the_site(&world, |taking| {
        taking.tries.get(&last).is_some_and(|tries| *tries > 2)
    })
    .await;
    let seen = world.store.instance_snapshot(world.organization, last).await;
    assert_eq!(seen.unwrap().status, Status::Creating);
    world.site.let_be_taken(last);
    becomes(&world, last, Status::Available).await;
}

#[tokio::test]
async fn what_is_given_up_is_removed_and_what_is_whole_stays() {
    let world = World::without_controller().await;
    world.site.keep_instance_snapshots();
    let signal = Arc::new(Notify::new());
    let running = keep_running(&world, &signal);
    let (away, refused, whole) = (
        want(&world, InstanceId::random()).await,
        want(&world, InstanceId::random()).await,
        want(&world, InstanceId::random()).await,
    );
    world.site.let_fail(away, Failure::Unavailable);
    world.site.let_be_taken(whole);
    signal.notify_one();
    becomes(&world, whole, Status::Available).await;
    // What the site may have whole is not removed between two tries.
    at_the_site(&world, |taking| {
        taking.tries.get(&away).is_some_and(|tries| *tries > 1)
    })
    .await;
    at_the_site(&world, |taking| taking.there.contains(&away)).await;
    world.clock.advance(Duration::from_secs(121));
    becomes(&world, away, Status::Error).await;
    at_the_site(&world, |taking| !taking.there.contains(&away)).await;
    // It cannot be removed now, and whoever knew of it ends.
    world.site.keep_busy(true);
    world
        .site
        .let_fail(refused, Failure::Refused("no room".to_owned()));
    becomes(&world, refused, Status::Error).await;
    drop(running);
    let store = &world.store;
    let messages = store.instance_snapshot(world.organization, refused).await;
    assert_eq!(messages.unwrap().messages, ["no room"]);
    store
        .instance_snapshot_damaged(world.organization, whole, "its disk is gone")
        .await
        .unwrap();
    at_the_site(&world, |taking| taking.there.contains(&refused)).await;
    world.site.keep_busy(false);
    let _running = keep_running(&world, &signal);
    at_the_site(&world, |taking| !taking.there.contains(&refused)).await;
    // One that turned out to be damaged was taken, and counts until its owner removes it.
    at_the_site(&world, |taking| taking.there.contains(&whole)).await;
}
