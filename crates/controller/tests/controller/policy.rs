//! A network policy that changes while instances run: they go on, as instances of the new deployment.

use serde_json::{Value, json};
use tram_site::Site as _;
use tram_store::record::ObjectKind;
use tram_types::status::{DeploymentStatus as D, InstanceStatus as I, ServiceStatus as S};

use crate::world::{World, web};

fn allowing(list: &[&str], mut definition: Value) -> Value {
    let list: Vec<Value> = list.iter().map(|cidr| json!({ "cidr": cidr })).collect();
    definition["network_policy"] =
        json!({ "egress": { "mode": "EGRESS_POLICY_MODE_DENY_ALL", "allow_list": list } });
    definition
}

#[tokio::test]
async fn instances_go_on_as_those_of_the_new_deployment() {
    let world = World::new().await;
    let made = world.create("web", web("image", 2)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let routed = world.endpoints_become(service, 2).await;
    let before = world.instances(service).await;
    let starts = world.site.calls().start;
    let new = world
        .deploy(service, allowing(&["10.0.0.0/8"], web("image", 2)))
        .await;
    world.deployment_becomes(new, D::Healthy).await;
    world.deployment_becomes(made.deployment.id, D::Stopped).await;
    let after = world.instances(service).await;
    assert_eq!(world.site.calls().start, starts, "nothing was started");
    assert_eq!(after.len(), before.len());
    for (was, is) in before.iter().zip(&after) {
        assert_eq!((was.id, was.started_at), (is.id, is.started_at));
        assert_eq!((is.deployment_id, is.status), (new, I::Healthy));
        assert_ne!(is.regional_deployment_id, was.regional_deployment_id);
        let seen = world.site.observe_instance(is.id).await.unwrap().unwrap();
        assert_eq!(seen.deployment, Some(new));
        assert_eq!(world.site.egress_of(is.id), Some(vec!["10.0.0.0/8".to_owned()]));
    }
    assert_eq!(world.service(service).await.active_deployment_id, Some(new));
    let mut as_before = routed.endpoints;
    for endpoint in &mut as_before {
        endpoint.deployment_id = Some(new.uuid());
    }
    assert_eq!(world.endpoints_become(service, 2).await.endpoints, as_before);
    let told = world
        .messages(ObjectKind::Deployment, new.uuid())
        .await
        .join("\n");
    assert!(told.contains("only the network policy differs"), "{told}");
}

#[tokio::test]
async fn a_change_of_more_than_the_policy_starts_new_instances() {
    let world = World::new().await;
    let made = world.create("web", web("image", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let before = world.instances(service).await[0].id;
    let mut definition = allowing(&[], web("image", 1));
    definition["env"] = json!([{ "key": "A", "value": "1" }]);
    let new = world.deploy(service, definition).await;
    world.deployment_comes_to(new, D::Healthy).await;
    let now = world.instances(service).await;
    assert!(now.iter().any(|it| it.deployment_id == new && it.id != before));
}
