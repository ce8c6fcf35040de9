//! A network policy changes under instances that run: none of them ends, and none is shown with a policy that does not
//! hold yet.

use proptest::prelude::*;
use serde_json::{Value, json};
use tram_site::EndCause;
use tram_types::{
    DeploymentId,
    definition::DeploymentDefinition,
    status::{DeploymentStatus as D, ServiceStatus},
};

use super::{
    light::frozen,
    scenarios::{healthy, statuses},
    world::{Program, World},
};
use crate::{Order, Write, only_policy_differs};

/// As one of which deployment each instance runs, at its site.
fn policies(world: &World) -> Vec<Option<DeploymentId>> {
    world.policies().into_values().collect()
}

#[test]
fn what_runs_goes_on_under_the_new_policy() {
    let mut world = healthy(3);
    let before = world.running();
    let new = world.change_policy();
    world.settle();
    assert_eq!(statuses(&world), [D::Stopped, D::Healthy]);
    assert_eq!(world.running(), before);
    assert_eq!(policies(&world), [Some(new); 3]);
    assert_eq!(
        (world.store.active, world.store.status),
        (Some(new), ServiceStatus::Healthy)
    );
    // What it has now it keeps: what fails is started again as one of the new deployment.
    world.end(before[0], EndCause::Exited { code: 1 });
    world.settle();
    assert_eq!(policies(&world), [Some(new); 3]);
}

#[test]
fn it_is_shown_when_it_holds_in_every_instance_and_requests_go_on_meanwhile() {
    let mut world = healthy(2);
    let old = world.store.active;
    let new = world.change_policy();
    // The orders are lost.
    world.reconcile(true);
    for _ in 0..3 {
        let made = world.reconcile(true);
        let orders = made
            .orders
            .iter()
            .filter(|it| matches!(it, Order::Continue { .. }));
        assert_eq!(orders.count(), 2, "{made:?}");
        assert_eq!(statuses(&world), [D::Healthy, D::Provisioning]);
        assert_eq!(world.store.active, old);
    }
    world.reconcile(false);
    assert_eq!(policies(&world), [Some(new); 2]);
    let made = world.reconcile(false);
    assert!(
        !made
            .writes
            .iter()
            .any(|it| matches!(it, Write::CreateInstance { .. })),
        "{made:?}"
    );
    assert_eq!(statuses(&world), [D::Stopped, D::Healthy]);
    assert_eq!(world.store.active, Some(new));
}

#[test]
fn what_sleeps_lightly_sleeps_on() {
    let mut world = frozen(1);
    let asleep = world.frozen();
    let new = world.change_policy();
    world.rounds(4);
    assert_eq!(statuses(&world), [D::Stopped, D::Sleeping]);
    assert_eq!((world.frozen(), policies(&world)), (asleep, vec![Some(new)]));
    assert_eq!(world.store.active, Some(new));
}

#[test]
fn one_that_is_cancelled_half_way_is_taken_back() {
    let mut world = healthy(2);
    let (before, old) = (world.running(), world.store.active);
    let new = world.change_policy();
    world.reconcile(false);
    assert_eq!(policies(&world), [Some(new); 2], "it was applied");
    world.cancel(new);
    world.settle();
    assert_eq!(statuses(&world), [D::Healthy, D::Canceled]);
    assert_eq!((policies(&world), world.running()), (vec![old; 2], before));
}

#[test]
fn the_newest_of_several_holds() {
    let mut world = healthy(1);
    let before = world.running();
    world.change_policy();
    world.reconcile(false);
    let last = world.change_policy();
    world.settle();
    assert_eq!(statuses(&world), [D::Stopped, D::Canceled, D::Healthy]);
    assert_eq!((policies(&world), world.running()), (vec![Some(last)], before));
}

#[test]
fn one_in_trouble_and_one_that_does_not_run_get_new_instances() {
    let mut world = healthy(1);
    let before = world.running();
    world.sicken(before[0]);
    world.rounds(2);
    let new = world.change_policy();
    world.settle();
    assert_ne!(world.running(), before);
    assert_eq!(policies(&world), [Some(new)]);
}

#[test]
fn a_site_that_is_silent_is_waited_for() {
    let mut world = healthy(1);
    let before = world.running();
    let new = world.change_policy();
    world.reachable = false;
    world.rounds(5);
    assert_eq!(statuses(&world), [D::Healthy, D::Provisioning]);
    world.settle();
    assert_eq!((policies(&world), world.running()), (vec![Some(new)], before));
}

#[test]
fn a_program_that_would_not_start_again_does_not_matter() {
    let mut world = healthy(1);
    let before = world.running();
    let new = world.change_policy();
    world.turn(new, Program::NoImage);
    world.settle();
    assert_eq!((policies(&world), world.running()), (vec![Some(new)], before));
}

fn definition(value: &Value) -> DeploymentDefinition {
    serde_json::from_value(value.clone()).unwrap()
}

fn base() -> Value {
    json!({
        "name": "box", "type": "SANDBOX", "regions": ["fra"], "docker": { "image": "python" },
        "env": [{ "key": "A", "value": "1" }], "instance_types": [{ "type": "micro" }],
        "scalings": [{ "min": 1, "max": 1 }], "ports": [{ "port": 3030, "protocol": "http" }],
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let list = prop::collection::vec("[1-9]\\.0\\.0\\.0/8|[a-z]{3}\\.org", 0..3);
    prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!({ "egress": { "mode": "EGRESS_POLICY_MODE_DEFAULT" } })),
        list.prop_map(|list| {
            let list: Vec<Value> = list.iter().map(|cidr| json!({ "cidr": cidr })).collect();
            json!({ "egress": { "mode": "EGRESS_POLICY_MODE_DENY_ALL", "allow_list": list } })
        }),
    ]
}

/// A change of anything but egress.
fn other_change() -> impl Strategy<Value = (&'static str, Value)> {
    prop::sample::select(vec![
        ("name", json!("other")),
        ("type", json!("WEB")),
        ("regions", json!(["par"])),
        ("docker", json!({ "image": "python:3" })),
        ("docker", json!({ "image": "python", "command": "x" })),
        ("env", json!([])),
        ("env", json!([{ "key": "A", "value": "2" }])),
        ("instance_types", json!([{ "type": "small" }])),
        ("scalings", json!([{ "min": 0, "max": 1 }])),
        ("ports", json!([])),
        ("routes", json!([{ "port": 3030, "path": "/" }])),
        ("proxy_ports", json!([{ "port": 3031, "protocol": "tcp" }])),
        ("health_checks", json!([{ "tcp": { "port": 3030 } }])),
        ("volumes", json!([{ "id": "v", "path": "/data" }])),
        ("config_files", json!([{ "path": "/f", "content": "x" }])),
        ("mesh", json!("DEPLOYMENT_MESH_ENABLED")),
        ("strategy", json!({ "type": "DEPLOYMENT_STRATEGY_TYPE_CANARY" })),
        ("skip_cache", json!(true)),
        ("network_policy", json!({ "mesh": { "scope": "MESH_SCOPE_APP" } })),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// It takes effect in place exactly when something differs and all that differs is egress.
    #[test]
    fn a_change_of_egress_alone_is_one_and_no_other_is(old in policy(), new in policy(), other in other_change()) {
        let with = |policy: &Value| {
            let mut value = base();
            value["network_policy"] = policy.clone();
            definition(&value)
        };
        let (before, after) = (with(&old), with(&new));
        prop_assert_eq!(only_policy_differs(&before, &after), before != after);
        prop_assert!(!only_policy_differs(&after, &after));
        let mut changed = base();
        changed["network_policy"] = new.clone();
        let (member, value) = other;
        changed[member] = value;
        prop_assert!(!only_policy_differs(&before, &definition(&changed)), "{member}");
        prop_assert!(!only_policy_differs(&definition(&changed), &before), "{member}");
    }

    /// However many orders are lost and however often the policy changes: nothing ends, nothing starts, the last one holds.
    #[test]
    fn no_instance_ends_for_a_policy(replicas in 1u32..4, rounds in prop::collection::vec((any::<bool>(), any::<bool>()), 1..12)) {
        let mut world = healthy(replicas);
        let before = world.running();
        let mut last = world.change_policy();
        for (changes, dies) in rounds {
            if changes {
                last = world.change_policy();
            }
            world.step_site();
            world.sync_edge();
            world.reconcile(dies);
            prop_assert_eq!(world.running(), before.clone());
        }
        world.settle();
        prop_assert_eq!(world.running(), before.clone());
        prop_assert_eq!(policies(&world), vec![Some(last); before.len()]);
        prop_assert_eq!(world.store.active, Some(last));
    }
}
