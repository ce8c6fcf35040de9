use std::collections::BTreeMap;

use tram_types::{AppId, DeploymentId, OrganizationId, RegionalDeploymentId, ServiceId};

use super::*;
use crate::FakeClock;

fn site() -> FakeSite {
    FakeSite::new(Arc::new(FakeClock::new()))
}

fn spec(image: &str) -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::random(),
        organization_id: OrganizationId::random(),
        app_id: AppId::random(),
        app_name: "shop".to_owned(),
        service_id: ServiceId::random(),
        service_name: "web".to_owned(),
        deployment_id: DeploymentId::random(),
        regional_deployment_id: RegionalDeploymentId::random(),
        replica_index: 0,
        image: ImageSpec {
            reference: image.to_owned(),
            credentials: None,
            model: None,
            adapters: Vec::new(),
            draft: None,
            keeps: false,
            deployment: DeploymentId::random(),
        },
        entrypoint: Vec::new(),
        command: String::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        files: Vec::new(),
        ports: Vec::new(),
        health_checks: Vec::new(),
        isolation: Default::default(),
        devices: None,
        volumes: Vec::new(),
        limits: tram_site::spec::Limits {
            cpu_millis: 250,
            memory_bytes: 1,
            disk_bytes: 1,
        },
        mesh: true,
        egress_allow: None,
        bound_secrets: Vec::new(),
        untrusted: false,
        snapshot: None,
        executor: None,
    }
}

#[tokio::test]
async fn an_older_order_is_refused() {
    let site = site();
    let spec = spec("nginx");
    site.start(&spec, Generation(1)).await.unwrap();
    site.stop(spec.id, Duration::ZERO, Generation(2)).await.unwrap();
    assert!(matches!(
        site.start(&spec, Generation(1)).await,
        Err(Error::OldGeneration {
            given: 1,
            seen: 2,
            ..
        })
    ));
    assert_eq!(site.calls().refused_generations, 1);
}

#[tokio::test]
async fn an_ended_instance_stays_until_it_is_forgotten() {
    let site = site();
    let spec = spec("nginx");
    site.start(&spec, Generation(1)).await.unwrap();
    assert!(matches!(
        site.forget(spec.id, Generation(1)).await,
        Err(Error::Refused { .. })
    ));
    site.end(spec.id, EndCause::Exited { code: 3 });
    let seen = site.observe_instance(spec.id).await.unwrap().unwrap();
    assert!(seen.phase.is_ended());
    site.forget(spec.id, Generation(1)).await.unwrap();
    assert_eq!(site.observe_instance(spec.id).await.unwrap(), None);
}

#[tokio::test]
async fn off_is_an_error_and_not_an_empty_report() {
    let site = site();
    let spec = spec("nginx");
    site.start(&spec, Generation(1)).await.unwrap();
    site.set_unreachable(true);
    assert!(matches!(site.observe().await, Err(Error::Unavailable { .. })));
    site.set_unreachable(false);
    assert_eq!(site.observe().await.unwrap().instances.len(), 1);
}

#[tokio::test]
async fn scripts_play_by_observation() {
    let site = site();
    site.script("slow", Behaviour::living(Life::HealthyAfter(2)));
    site.script("crash", Behaviour::crashes(7));
    let (slow, crash) = (spec("slow"), spec("crash"));
    site.start(&slow, Generation(1)).await.unwrap();
    site.start(&crash, Generation(1)).await.unwrap();
    let first = site.observe().await.unwrap();
    assert!(matches!(
        first.instances[&slow.id].phase,
        InstancePhase::Starting { .. }
    ));
    assert!(matches!(
        first.instances[&crash.id].phase,
        InstancePhase::Ended {
            cause: EndCause::Exited { code: 7 },
            ..
        }
    ));
    assert!(
        site.observe().await.unwrap().instances[&slow.id]
            .phase
            .is_healthy()
    );
}

#[tokio::test]
async fn exec_echoes() {
    let site = site();
    let spec = spec("nginx");
    site.start(&spec, Generation(1)).await.unwrap();
    let request = ExecRequest {
        command: vec!["echo".to_owned(), "hi".to_owned()],
        ..ExecRequest::default()
    };
    let mut session = site.exec(spec.id, &request).await.unwrap();
    assert_eq!(
        session.output.recv().await,
        Some(ExecOutput::Stdout("echo hi\n".into()))
    );
    session.input.send(ExecInput::Stdin("x".into())).await.unwrap();
    assert_eq!(session.output.recv().await, Some(ExecOutput::Stdout("x".into())));
    session.input.send(ExecInput::CloseStdin).await.unwrap();
    assert_eq!(session.output.recv().await, Some(ExecOutput::Exited { code: 0 }));
}

#[tokio::test]
async fn logs_page_in_both_directions() {
    let site = site();
    let id = InstanceId::random();
    for line in ["a", "b", "c"] {
        site.write_log(id, LogStream::Stdout, line);
    }
    let messages = |page: LogPage| {
        page.entries
            .into_iter()
            .map(|line| line.message)
            .collect::<Vec<_>>()
    };
    let oldest = site
        .logs(
            id,
            &LogQuery {
                limit: 2,
                ..LogQuery::default()
            },
        )
        .await
        .unwrap();
    assert!(oldest.has_more);
    assert_eq!(messages(oldest), ["a", "b"]);
    let newest = LogQuery {
        limit: 2,
        newest: true,
        ..LogQuery::default()
    };
    assert_eq!(messages(site.logs(id, &newest).await.unwrap()), ["b", "c"]);
}
