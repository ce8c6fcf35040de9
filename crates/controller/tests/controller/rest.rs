//! The reconcilers beside the services: strays, domains, history.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::json;
use tram_controller::{
    domain::{self, Checker, Resolver, Unanswered, Verdict},
    driver::Reconciler as _,
    orphan, retention,
};
use tram_site::{EndCause, ImageSpec, InstanceSpec, LogQuery, LogStream, Site as _, spec::Limits};
use tram_store::intent::NewDomain;
use tram_types::{
    AppId, DeploymentId, DomainId, Generation, InstanceId, OrganizationId, RegionalDeploymentId, ServiceId,
    routing::DEFAULT_REQUEST_TIMEOUT_MS,
    status::{DomainStatus, DomainType, ServiceStatus as S},
};

use crate::world::{World, web};

fn stray() -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::random(),
        organization_id: OrganizationId::random(),
        app_id: AppId::random(),
        app_name: "gone".to_owned(),
        service_id: ServiceId::random(),
        service_name: "gone".to_owned(),
        deployment_id: DeploymentId::random(),
        regional_deployment_id: RegionalDeploymentId::random(),
        replica_index: 0,
        image: ImageSpec {
            reference: "v1".to_owned(),
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
        devices: None,
        isolation: Default::default(),
        volumes: Vec::new(),
        limits: Limits {
            cpu_millis: 1,
            memory_bytes: 1,
            disk_bytes: 1,
        },
        mesh: false,
        egress_allow: None,
        bound_secrets: Vec::new(),
        untrusted: false,
        snapshot: None,
        executor: None,
    }
}

#[tokio::test]
async fn strays_are_stopped_when_seen_twice_and_nothing_else_is() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 2)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let ours = world.site.running();
    let spec = stray();
    world.site.start(&spec, Generation(7)).await.unwrap();
    let orphans = orphan::Reconciler::new(&world.deps());
    let first = orphans.run().await.unwrap();
    assert_eq!((first.strays, first.stopped), (1, 0));
    let second = orphans.run().await.unwrap();
    assert_eq!((second.strays, second.stopped), (1, 1));
    let third = orphans.run().await.unwrap();
    assert_eq!((third.strays, third.forgotten), (1, 1));
    assert_eq!(orphans.run().await.unwrap(), orphan::Report::default());
    assert_eq!(world.site.running(), ours);
}

#[tokio::test]
async fn a_site_that_is_off_has_no_strays() {
    let world = World::without_controller().await;
    world.site.start(&stray(), Generation(1)).await.unwrap();
    world.site.set_unreachable(true);
    let orphans = orphan::Reconciler::new(&world.deps());
    for _ in 0..3 {
        let report = orphans.run().await.unwrap();
        assert_eq!((report.strays, report.unreachable), (0, 1));
    }
}

#[derive(Debug)]
struct Names(BTreeMap<String, IpAddr>);

#[async_trait]
impl Resolver for Names {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unanswered> {
        Ok(self.0.get(host).copied().into_iter().collect())
    }
}

/// A DNS that answers nothing.
#[derive(Debug)]
struct Silence;

#[async_trait]
impl Resolver for Silence {
    async fn addresses(&self, _host: &str) -> Result<Vec<IpAddr>, Unanswered> {
        Err(Unanswered)
    }
}

async fn custom(world: &World, name: &str) -> DomainId {
    let id = DomainId::random();
    let domain = NewDomain {
        id,
        organization_id: world.organization,
        project_id: None,
        app_id: Some(world.app),
        name: name.to_owned(),
        kind: DomainType::Custom,
        status: DomainStatus::Pending,
        intended_cname: "edge.example.net".to_owned(),
        load_balancer: json!({"koyeb": {}}),
    };
    world.store.create_domain(domain).await.unwrap();
    id
}

#[tokio::test]
async fn a_custom_domain_is_active_once_it_leads_here() {
    let world = World::without_controller().await;
    let (good, bad) = (
        custom(&world, "shop.example.org").await,
        custom(&world, "lost.example.org").await,
    );
    let mut deps = world.deps();
    deps.settings.base_domain = "example.net".to_owned();
    let here: IpAddr = [192, 0, 2, 1].into();
    deps.resolver = Arc::new(Names(BTreeMap::from([
        ("edge.example.net".to_owned(), here),
        ("shop.example.org".to_owned(), here),
        ("lost.example.org".to_owned(), [192, 0, 2, 9].into()),
    ])));
    let report = domain::Reconciler::new(&deps).run().await.unwrap();
    assert_eq!((report.activated, report.waiting), (1, 1));
    let good = world.store.domain(world.organization, good).await.unwrap();
    assert_eq!(good.status, DomainStatus::Active);
    assert!(good.verified_at.is_some());
    let bad = world.store.domain(world.organization, bad).await.unwrap();
    assert_eq!(bad.status, DomainStatus::Pending);
    assert!(bad.messages[0].contains("CNAME record that points to edge.example.net"));
}

#[tokio::test]
async fn an_active_domain_that_leads_away_has_an_error_and_silence_changes_nothing() {
    let world = World::without_controller().await;
    let id = custom(&world, "shop.example.org").await;
    let checker = |resolver: Arc<dyn Resolver>| {
        let clock = Arc::new(world.clock.clone());
        Checker::new(world.store.clone(), resolver, clock, "example.net")
    };
    let domain = async || world.store.domain(world.organization, id).await.unwrap();
    let silence: Arc<dyn Resolver> = Arc::new(Silence);
    let names = |address: [u8; 4]| -> Arc<dyn Resolver> {
        Arc::new(Names(BTreeMap::from([
            ("edge.example.net".to_owned(), [192, 0, 2, 1].into()),
            ("shop.example.org".to_owned(), address.into()),
        ])))
    };
    for (resolver, verdict, status) in [
        (Arc::clone(&silence), Verdict::Unknown, DomainStatus::Pending),
        (names([192, 0, 2, 1]), Verdict::Here, DomainStatus::Active),
        (Arc::clone(&silence), Verdict::Unknown, DomainStatus::Active),
        (names([192, 0, 2, 9]), Verdict::Elsewhere, DomainStatus::Error),
        (Arc::clone(&silence), Verdict::Unknown, DomainStatus::Error),
        (names([192, 0, 2, 1]), Verdict::Here, DomainStatus::Active),
    ] {
        let found = checker(resolver).check(&domain().await).await.unwrap();
        assert_eq!((found, domain().await.status), (verdict, status));
    }
}

#[tokio::test]
async fn a_domain_s_time_out_is_that_of_its_app_s_services() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    let limit = || world.edge.service(made.service.id).unwrap().request_timeout_ms;
    assert_eq!(limit(), DEFAULT_REQUEST_TIMEOUT_MS);
    let id = DomainId::random();
    let domain = NewDomain {
        id,
        organization_id: world.organization,
        project_id: None,
        app_id: Some(world.app),
        name: "slow.example.org".to_owned(),
        kind: DomainType::Custom,
        status: DomainStatus::Pending,
        intended_cname: "edge.example.net".to_owned(),
        load_balancer: json!({"koyeb": {"request_timeout_seconds": 600}}),
    };
    world.store.create_domain(domain).await.unwrap();
    let becomes = async |expected: u64| {
        world
            .until("the edge has the time-out", async || match limit() {
                found if found == expected => Ok(()),
                other => Err(other.to_string()),
            })
            .await;
    };
    becomes(600_000).await;
    world.store.delete_domain(world.organization, id).await.unwrap();
    becomes(DEFAULT_REQUEST_TIMEOUT_MS).await;
}

#[tokio::test]
async fn below_localhost_a_custom_domain_is_active_at_once_and_routed() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    let id = custom(&world, "shop.example.org").await;
    world
        .until("it is active", async || {
            let domain = world.store.domain(world.organization, id).await.unwrap();
            if domain.status == DomainStatus::Active {
                Ok(())
            } else {
                Err(format!("{domain:?}"))
            }
        })
        .await;
    world
        .until("it is routed", async || {
            let table = world.edge.table();
            let host = table
                .hosts
                .iter()
                .find(|host| host.name == "shop.example.org")
                .cloned();
            match host {
                Some(host) if host.routes.len() == 1 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn old_history_goes_and_the_running_service_stays() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let retention = retention::Reconciler::new(&world.deps());
    assert_eq!(retention.run().await.unwrap().events, 0);
    world.clock.advance(Duration::from_secs(60 * 24 * 60 * 60));
    let pruned = retention.run().await.unwrap();
    assert!(pruned.events > 0);
    assert_eq!((pruned.deployments, pruned.instances), (0, 0));
    assert_eq!(world.service(made.service.id).await.status, S::Healthy);
}

async fn log_lines(world: &World, id: InstanceId) -> usize {
    let query = LogQuery {
        limit: 10,
        ..LogQuery::default()
    };
    world.site.logs(id, &query).await.unwrap().entries.len()
}

#[tokio::test]
async fn the_logs_of_a_pruned_instance_go_before_its_row() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let old = world.site.running()[0];
    world.site.write_log(old, LogStream::Stdout, "hello");
    world.site.end(old, EndCause::Exited { code: 1 });
    world.service_becomes(made.service.id, S::Unhealthy).await;
    world.service_comes_to(made.service.id, S::Healthy).await;
    world
        .until("it is forgotten", async || {
            let row = world.store.instance_unscoped(old).await.unwrap();
            if row.forgotten {
                Ok(())
            } else {
                Err(format!("{row:?}"))
            }
        })
        .await;
    let retention = retention::Reconciler::new(&world.deps());
    world.clock.advance(Duration::from_secs(60 * 24 * 60 * 60));
    // The site does not answer: the row stays, or nobody would know of the logs.
    world.site.set_unreachable(true);
    assert_eq!(retention.run().await.unwrap().instances, 0);
    world.site.set_unreachable(false);
    assert!(log_lines(&world, old).await > 0);
    assert_eq!(retention.run().await.unwrap().instances, 1);
    assert_eq!(log_lines(&world, old).await, 0);
    assert!(world.store.instance_unscoped(old).await.is_err());
}

#[tokio::test]
async fn a_stray_leaves_no_logs_and_one_that_cannot_be_ended_holds_up_no_other() {
    let world = World::without_controller().await;
    let mut strays = Vec::new();
    for _ in 0..3 {
        let spec = stray();
        world.site.start(&spec, Generation(1)).await.unwrap();
        world.site.write_log(spec.id, LogStream::Stdout, "hello");
        strays.push(spec.id);
    }
    let orphans = orphan::Reconciler::new(&world.deps());
    orphans.run().await.unwrap();
    strays.sort();
    world.site.refuse_stop(strays[0]);
    let second = orphans.run().await.unwrap();
    assert_eq!((second.stopped, second.failed), (2, 1));
    let third = orphans.run().await.unwrap();
    assert_eq!((third.forgotten, third.failed), (2, 1));
    assert_eq!(log_lines(&world, strays[1]).await, 0);
    assert_eq!(log_lines(&world, strays[2]).await, 0);
    assert_eq!(world.site.running(), [strays[0]]);
}
