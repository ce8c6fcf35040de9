//! A full disk, as the owner of an instance sees it.

use tram_types::units::MIB;

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
