//! Service pools and claims.

use std::collections::BTreeSet;

use tram_types::{
    OrganizationId, ServicePoolId, Timestamp,
    status::{PoolClaimStatus, ServiceStatus},
};

use super::fixture::{Fixture, new_app, new_domain, new_service};
use crate::{
    Error, NewPoolMember, NewServicePool, Page, ServicePoolEdit, filter,
    intent::{ServiceSet, Update},
    record::{Desired, ManualScaling, ServicePool},
};

/// As many members as anybody wants.
const MANY: u32 = 1000;

async fn pool(fixture: &Fixture, organization: OrganizationId) -> ServicePool {
    let new = NewServicePool {
        id: ServicePoolId::random(),
        organization_id: organization,
        name: "agents".to_owned(),
        size: 2,
        definition: serde_json::json!({"type": "SANDBOX"}),
        created_by: String::new(),
    };
    fixture.store.create_service_pool(new, MANY).await.unwrap()
}

fn member(pool: &ServicePool, name: &str) -> NewPoolMember {
    let app = new_app(pool.organization_id, name);
    let stands_for = crate::apps::app_of(app.clone(), Timestamp::from_micros(0));
    NewPoolMember {
        generation: pool.generation,
        domain: new_domain(pool.organization_id, Some(app.id), &format!("{name}.localhost")),
        service: new_service(&stands_for, name),
        app,
        awake: vec![ManualScaling {
            scopes: Vec::new(),
            instances: 1,
            keeps_awake: true,
        }],
    }
}

/// Adds a member and makes it healthy.
async fn ready(fixture: &Fixture, pool: &ServicePool, name: &str) -> tram_types::ServiceId {
    let id = fixture
        .store
        .add_pool_member(pool.id, member(pool, name))
        .await
        .unwrap();
    let healthy = Update::Service {
        expected: ServiceStatus::Starting,
        set: Box::new(ServiceSet {
            status: Some(ServiceStatus::Healthy),
            ..ServiceSet::default()
        }),
    };
    fixture.store.apply(id, vec![healthy]).await.unwrap();
    id
}

pub(super) async fn a_claim_takes_a_ready_member_once(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let pool = pool(fixture, organization).await;
    let claim = |request: &'static str| store.claim(organization, pool.id, request, None);
    assert_eq!(claim("a").await.unwrap(), None, "nothing is there");
    let first = ready(fixture, &pool, "one").await;
    assert_eq!(store.pool_ready_counts(organization).await.unwrap()[&pool.id], 1);
    assert!(
        !store
            .service(organization, first)
            .await
            .unwrap()
            .manual_scaling
            .is_empty()
    );
    let taken = claim("a").await.unwrap().unwrap();
    assert!(taken.prewarmed && taken.service_id == first);
    assert_eq!(claim("a").await.unwrap(), Some(taken.clone()), "the same again");
    assert_eq!(claim("b").await.unwrap(), None, "taken once");
    assert!(
        store
            .service(organization, first)
            .await
            .unwrap()
            .manual_scaling
            .is_empty()
    );
    assert!(store.pool_members(pool.id).await.unwrap().is_empty());
    let cold = store
        .claim(organization, pool.id, "b", Some(member(&pool, "two")))
        .await
        .unwrap()
        .unwrap();
    assert!(!cold.prewarmed);
    let (other, _) = fixture.organization().await;
    assert!(matches!(
        store.claim(other, pool.id, "c", None).await,
        Err(Error::NotFound { .. })
    ));

    store
        .set_service_desired(organization, first, Desired::Delete)
        .await
        .unwrap();
    let released = filter::Claims {
        pool_id: Some(pool.id),
        status: Some(PoolClaimStatus::Released),
    };
    store.remove_service(first).await.unwrap();
    let listed = store
        .list_pool_claims(organization, &released, Page::largest())
        .await
        .unwrap();
    assert_eq!(
        listed.items.iter().map(|claim| claim.id).collect::<Vec<_>>(),
        [taken.id]
    );
}

pub(super) async fn claims_that_race_never_share_a_member(fixture: &Fixture) {
    let (organization, _) = fixture.organization().await;
    let pool = pool(fixture, organization).await;
    ready(fixture, &pool, "one").await;
    ready(fixture, &pool, "two").await;
    let claims = ["a", "b", "a", "b", "c"].map(|request| {
        let (store, pool) = (fixture.store.clone(), pool.id);
        tokio::spawn(async move { store.claim(organization, pool, request, None).await.unwrap() })
    });
    let mut taken = BTreeSet::new();
    for claim in claims {
        taken.extend(
            claim
                .await
                .unwrap()
                .map(|claim| (claim.request_id, claim.service_id)),
        );
    }
    let services: BTreeSet<_> = taken.iter().map(|(_, service)| *service).collect();
    assert_eq!((taken.len(), services.len()), (2, 2), "{taken:?}");
}

pub(super) async fn a_pool_takes_members_of_its_generation_and_size(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let pool = pool(fixture, organization).await;
    let old = ready(fixture, &pool, "old").await;
    let edit = ServicePoolEdit {
        size: Some(1),
        definition: Some(serde_json::json!({"type": "WEB"})),
    };
    let changed = store
        .update_service_pool(organization, pool.id, edit.clone(), MANY)
        .await
        .unwrap();
    assert_eq!(changed.generation, 2);
    let again = store
        .update_service_pool(organization, pool.id, edit, MANY)
        .await
        .unwrap();
    assert_eq!(again.generation, 2, "the same definition is no change");
    assert_eq!(store.claim(organization, pool.id, "a", None).await.unwrap(), None);
    for refused in [member(&pool, "stale"), member(&changed, "surplus")] {
        assert!(matches!(
            store.add_pool_member(pool.id, refused).await,
            Err(Error::Conflict { .. })
        ));
    }
    assert!(store.retire_pool_member(pool.id, old).await.unwrap());
    assert_eq!(
        store.service(organization, old).await.unwrap().desired,
        Desired::Delete
    );
    store.delete_service_pool(organization, pool.id).await.unwrap();
    assert!(
        !store.remove_service_pool(pool.id).await.unwrap(),
        "a member is left"
    );
    assert!(matches!(
        store.claim(organization, pool.id, "a", None).await,
        Err(Error::Conflict { .. })
    ));
    store.remove_service(old).await.unwrap();
    assert!(store.remove_service_pool(pool.id).await.unwrap());
}

pub(super) async fn pools_of_an_organization_share_a_bound(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let (stranger, _) = fixture.organization().await;
    let new = |organization, name: &str, size| NewServicePool {
        id: ServicePoolId::random(),
        organization_id: organization,
        name: name.to_owned(),
        size,
        definition: serde_json::json!({"type": "SANDBOX"}),
        created_by: String::new(),
    };
    let first = store
        .create_service_pool(new(organization, "first", 6), 10)
        .await
        .unwrap();
    let refused = store
        .create_service_pool(new(organization, "second", 5), 10)
        .await;
    let words = refused.unwrap_err().to_string();
    for word in [
        "keep 6 services",
        "would keep 5",
        "may keep 10",
        "`pool_members_max`",
    ] {
        assert!(words.contains(word), "{words}");
    }
    // Nobody counts for another, and what does fit is made.
    store
        .create_service_pool(new(stranger, "second", 10), 10)
        .await
        .unwrap();
    let second = store
        .create_service_pool(new(organization, "second", 4), 10)
        .await
        .unwrap();
    let resize = async |pool: &ServicePool, size, most| {
        let edit = ServicePoolEdit {
            size: Some(size),
            definition: None,
        };
        store.update_service_pool(organization, pool.id, edit, most).await
    };
    assert!(matches!(
        resize(&second, 5, 10).await,
        Err(Error::Exhausted { .. })
    ));
    // The bound was made smaller: what is there stays, and may shrink.
    assert_eq!(resize(&first, 6, 3).await.unwrap().size, 6);
    assert_eq!(resize(&first, 5, 3).await.unwrap().size, 5);
    assert_eq!(resize(&second, 5, 10).await.unwrap().size, 5);
    // What is on its way out keeps nothing ready.
    store.delete_service_pool(organization, first.id).await.unwrap();
    assert_eq!(resize(&second, 10, 10).await.unwrap().size, 10);
}

pub(super) async fn pools_made_at_once_never_pass_the_bound(fixture: &Fixture) {
    let (organization, _) = fixture.organization().await;
    let making = (0..8).map(|number| {
        let store = fixture.store.clone();
        let new = NewServicePool {
            id: ServicePoolId::random(),
            organization_id: organization,
            name: format!("pool-{number}"),
            size: 2,
            definition: serde_json::json!({"type": "SANDBOX"}),
            created_by: String::new(),
        };
        tokio::spawn(async move { store.create_service_pool(new, 6).await.is_ok() })
    });
    let making: Vec<_> = making.collect();
    let mut made = 0;
    for one in making {
        made += usize::from(one.await.unwrap());
    }
    assert_eq!(made, 3);
}
