//! The disk of an instance: full, as its owner sees it, and kept as a snapshot.

use std::time::Duration;

use tram_site::Site as _;
use tram_types::{InstanceSnapshotId, status::InstanceSnapshotType, units::MIB};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_refused_inside_and_explained_in_the_log() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    if machine.lacks("disk limits") {
        return;
    }
    let site = machine.open().await;
    let mut greedy = machine.spec("shop", "greedy");
    greedy.limits.disk_bytes = 32 * MIB;
    let address = up(&site, &greedy).await;
    let write = "dd if=/dev/zero of=/tmp/big bs=65536 count=1600 2>&1 | grep -c 'No space left'";
    let user = format!("{write}; ls -l /tmp/big");
    let (said, _) = shell(&site, greedy.id, &user).await;
    assert!(said.starts_with("1\n"), "{said}");
    let line = "koyeb: the disk of the instance is full: its instance type has 32 MiB";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let lines = log_lines(&site, greedy.id).await;
        if lines.iter().any(|it| it.starts_with(line)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{lines:?}");
        tokio::task::yield_now().await;
    }
    assert!(get(address).await.contains("it works"), "it goes on");
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_whole_outlives_its_instance() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    if machine.lacks("disk limits") {
        return;
    }
    let site = machine.open().await;
    let first = machine.spec("shop", "first");
    up(&site, &first).await;
    let snapshot = InstanceSnapshotId::random();
    let filesystem = InstanceSnapshotType::Filesystem;
    let bytes = site.take_snapshot(first.id, snapshot, filesystem).await.unwrap();
    site.stop(first.id, Duration::ZERO, NEWEST).await.unwrap();
    ended(&site, first.id).await;
    // Whoever took it may have ended before it was recorded, and asks again.
    let again = site.take_snapshot(first.id, snapshot, filesystem).await.unwrap();
    assert_eq!(again, bytes);
    site.take_snapshot(first.id, InstanceSnapshotId::random(), filesystem)
        .await
        .expect_err("another one of what is over");
    site.remove_snapshot(snapshot).await.unwrap();
    site.take_snapshot(first.id, snapshot, filesystem)
        .await
        .expect_err("it was removed");
    machine.finish(site).await;
}
