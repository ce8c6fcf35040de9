//! The control plane and the supervisor come and go; instances stay.

use std::time::Duration;

use tram_site::{EndCause, Error, InstancePhase, InstanceSpec, Site};
use tram_types::{Clock, Generation};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_control_plane_adopts_what_runs() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    let address = up(&site, &web).await;
    let api = InstanceSpec {
        organization_id: web.organization_id,
        ..machine.spec("shop", "api")
    };
    up(&site, &api).await;
    let sleeper = machine.spec("shop", "sleeper");
    up(&site, &sleeper).await;
    site.freeze(sleeper.id, Generation(2)).await.unwrap();
    let ending = machine.script("while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 9");
    start(&site, &ending).await;
    healthy(&site, ending.id).await;
    let (started, _) = shell(&site, web.id, "cat /proc/1/stat").await;
    drop(site);

    // Nobody looks: requests are served all the same, and an end is remembered.
    assert!(get(address).await.contains("it works"));
    let client = tram_sandbox::client::Client::new(machine.state());
    let id = tram_sandbox::protocol::InstanceId::new(ending.id.to_string()).unwrap();
    let touch = tram_sandbox::protocol::ExecSpec {
        argv: ["/bin/sh", "-c", ": > /tmp/go"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: None,
        user: None,
        tty: None,
    };
    client.exec(&id, touch).unwrap();

    let site = machine.open().await;
    let seen = site.observe().await.unwrap();
    let phase = &seen.instances[&web.id].phase;
    assert_eq!(
        *phase,
        InstancePhase::Running {
            healthy: true,
            failures: 0,
            last_failure: None
        },
        "healthy again before anybody could ask"
    );
    assert_eq!(seen.instances[&web.id].address, Some(address));
    assert_eq!(seen.instances[&sleeper.id].phase, InstancePhase::Frozen);
    assert_eq!(ended(&site, ending.id).await, EndCause::Exited { code: 9 });
    let (still, _) = shell(&site, web.id, "cat /proc/1/stat").await;
    let start_time = |stat: &str| stat.split_whitespace().nth(21).map(str::to_owned);
    assert_eq!(start_time(&started), start_time(&still), "not restarted");
    // The network is as it was: names, neighbours, and a new instance with an address of its own.
    assert_eq!(fetch(&site, &api, "web.shop.internal").await, "it works\n");
    let next = machine.spec("shop", "next");
    let next_address = up(&site, &next).await;
    assert!(
        seen.instances
            .values()
            .all(|other| other.address != Some(next_address))
    );
    site.thaw(sleeper.id, Generation(3)).await.unwrap();
    healthy(&site, sleeper.id).await;
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_in_half_is_cleaned_and_said() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    up(&site, &web).await;
    drop(site);
    // A record without an instance: the process ended between writing it and the launch.
    let half = machine.spec("shop", "half");
    let records = machine.state().join("local/instances");
    let text = std::fs::read_to_string(records.join(format!("{}.json", web.id))).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record["spec"] = serde_json::to_value(&half).unwrap();
    record["slot"] = 9.into();
    record["became_healthy"] = false.into();
    std::fs::write(records.join(format!("{}.json", half.id)), record.to_string()).unwrap();
    // An instance without a record.
    std::fs::remove_file(records.join(format!("{}.json", web.id))).unwrap();
    std::fs::write(records.join("torn.new"), "{").unwrap();
    std::fs::write(machine.state().join("local/netns/fff"), "").unwrap();

    let site = machine.open().await;
    assert_eq!(ended(&site, half.id).await, EndCause::Interrupted);
    assert_eq!(site.observe_instance(web.id).await.unwrap(), None);
    let client = tram_sandbox::client::Client::new(machine.state());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while client
        .list()
        .unwrap()
        .iter()
        .any(|info| info.id.as_str() == web.id.to_string())
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the leftover instance stays"
        );
        tokio::task::yield_now().await;
    }
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_on_record_and_runs_is_ended_and_can_be_forgotten() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    up(&site, &web).await;
    drop(site);
    // A start gave up because the answer was lost, and the supervisor carried the order out while nobody looked.
    let path = machine.state().join(format!("local/instances/{}.json", web.id));
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let cause = EndCause::FailedToStart {
        message: "the answer was lost".to_owned(),
    };
    record["end"] = serde_json::json!({ "cause": cause, "at": tram_types::SystemClock.now() });
    std::fs::write(&path, record.to_string()).unwrap();

    let site = machine.open().await;
    assert_eq!(ended(&site, web.id).await, cause, "as recorded");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = site.forget(web.id, Generation(2)).await {
        assert!(tokio::time::Instant::now() < deadline, "it runs on: {error}");
        tokio::task::yield_now().await;
    }
    site.remove_logs(web.id).await.unwrap();
    assert!(
        tram_sandbox::client::Client::new(machine.state())
            .list()
            .unwrap()
            .is_empty()
    );
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_supervisor_is_no_end() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    let mut config = machine.config();
    config.supervisor_patience = Duration::from_millis(300);
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    let address = up(&site, &web).await;
    drop(site);
    let images =
        tram_image::ImageStore::open(machine.state().join("second"), tram_image::Settings::default());
    let site = tram_site_local::LocalSite::open(config, images.unwrap())
        .await
        .unwrap();
    healthy(&site, web.id).await;
    machine.kill_supervisor();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match site.observe().await {
            // Not noticed yet.
            Ok(seen) => assert!(seen.instances[&web.id].phase.is_healthy()),
            Err(error) => {
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
                break;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "the loss is not noticed");
        tokio::task::yield_now().await;
    }
    assert!(get(address).await.contains("it works"), "the instance goes on");
    let stop = site
        .stop(web.id, Duration::ZERO, Generation(2))
        .await
        .unwrap_err();
    assert!(stop.is_retryable(), "{stop}");
    machine.start_supervisor();
    let seen = found_again(&site).await;
    // Whoever sees "stopping" waits for the end and orders nothing.
    assert!(
        matches!(seen.instances[&web.id].phase, InstancePhase::Running { .. }),
        "{seen:?}"
    );
    site.stop(web.id, Duration::ZERO, Generation(2)).await.unwrap();
    assert_eq!(ended(&site, web.id).await, EndCause::Stopped);
    machine.finish(site).await;
}

async fn found_again(site: &tram_site_local::LocalSite) -> tram_site::Observation {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Ok(seen) = site.observe().await {
            return seen;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the supervisor is not found again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_on_record_and_got_lost_is_sent_again() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    up(&site, &web).await;
    machine.kill_supervisor();
    // It is on its way when whoever gave it goes away.
    let stop = site.stop(web.id, Duration::ZERO, Generation(2));
    let cut = tokio::time::timeout(Duration::from_millis(100), stop).await;
    assert!(cut.is_err(), "{cut:?}");
    machine.start_supervisor();
    assert_eq!(ended(&site, web.id).await, EndCause::Stopped);
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_starting_and_many_at_once() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let first = machine.spec("shop", "web");
    up(&site, &first).await;
    let specs: Vec<InstanceSpec> = (0..20)
        .map(|index| InstanceSpec {
            id: tram_types::InstanceId::random(),
            replica_index: index,
            ..first.clone()
        })
        .collect();
    let begun = tokio::time::Instant::now();
    for spec in &specs {
        site.start(spec, Generation(1)).await.unwrap();
    }
    for spec in specs.iter().step_by(2) {
        site.stop(spec.id, Duration::ZERO, Generation(2)).await.unwrap();
    }
    let mut addresses = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        if index % 2 == 0 {
            assert_eq!(ended(&site, spec.id).await, EndCause::Stopped);
        } else {
            addresses.push(healthy(&site, spec.id).await);
        }
    }
    println!("ten up and ten stopped while starting: {:?}", begun.elapsed());
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 10);
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_is_lost_or_left() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    // The image is pulled and pinned by a first instance; the others are of the same deployment.
    let site = machine.open().await;
    let first = machine.spec("shop", "web");
    up(&site, &first).await;
    drop(site);
    let (mut went_on, mut interrupted, mut unknown) = (0, 0, 0);
    for round in 0..10_u64 {
        let specs: Vec<InstanceSpec> = (0..4)
            .map(|index| InstanceSpec {
                id: tram_types::InstanceId::random(),
                replica_index: index,
                ..first.clone()
            })
            .collect();
        machine.hand_images_over(true);
        let mut child = std::process::Command::new(example("local-starter"))
            .args([
                machine.state(),
                machine.images_dir(),
                machine.network.to_string().into(),
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut said,
        )
        .unwrap();
        assert_eq!(said, "open\n");
        let mut input = child.stdin.take().unwrap();
        for spec in &specs {
            std::io::Write::write_all(
                &mut input,
                format!("{}\n", serde_json::to_string(spec).unwrap()).as_bytes(),
            )
            .unwrap();
        }
        // Not a wait for something: the moment of death, another one in each round.
        tokio::time::sleep(Duration::from_millis(round * 6)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        machine.hand_images_over(false);
        let site = machine.open().await;
        let observed = site.observe().await.unwrap();
        assert!(
            observed.instances[&first.id].phase.is_healthy(),
            "{:?}",
            observed.instances[&first.id]
        );
        for spec in &specs {
            match observed.instances.get(&spec.id).map(|seen| &seen.phase) {
                None => unknown += 1,
                Some(InstancePhase::Ended {
                    cause: EndCause::Interrupted,
                    ..
                }) => interrupted += 1,
                Some(InstancePhase::Ended { cause, .. }) => panic!("{cause}"),
                Some(_) => {
                    let address = healthy(&site, spec.id).await;
                    assert!(get(address).await.contains("it works"));
                    site.stop(spec.id, Duration::ZERO, NEWEST).await.unwrap();
                    assert_eq!(ended(&site, spec.id).await, EndCause::Stopped);
                    went_on += 1;
                }
            }
            site.forget(spec.id, NEWEST).await.unwrap();
            site.remove_logs(spec.id).await.unwrap();
        }
        // The supervisor has what the site has.
        let client = tram_sandbox::client::Client::new(machine.state());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while client.list().unwrap().len() > 1 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{:?}",
                client.list().unwrap()
            );
            tokio::task::yield_now().await;
        }
        drop(site);
    }
    println!("{went_on} went on, {interrupted} were interrupted, {unknown} had not been ordered yet");
    let site = machine.open().await;
    machine.finish(site).await;
}
