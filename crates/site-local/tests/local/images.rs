//! Images stay for as long as a deployment may need them, and go afterwards.

use std::time::Duration;

use tram_image::{CollectPolicy, ImageStore};
use tram_site::{Error, InstanceSpec, ObservedImage, Site};
use tram_site_local::{LocalSite, images_in_use_at};
use tram_types::Generation;

use crate::support::*;

/// Takes whatever may be taken.
fn everything() -> CollectPolicy {
    CollectPolicy {
        grace: Duration::ZERO,
        unused_for: Some(Duration::ZERO),
        keep_bytes: Some(0),
    }
}

async fn collect(site: &LocalSite, images: &ImageStore) -> usize {
    let in_use = site.images_in_use().await.unwrap();
    images.collect(&in_use, &everything()).await.unwrap().layers
}

/// The image of a deployment, ready, and nothing that runs it.
async fn pin(site: &LocalSite, spec: &InstanceSpec) {
    let mut changed = site.changed();
    loop {
        match site.ensure_image(&spec.image).await.unwrap() {
            ObservedImage::Ready { .. } => return,
            ObservedImage::Failed { message, .. } => panic!("{message}"),
            ObservedImage::Pulling { .. } => {
                tokio::time::timeout(PATIENCE, changed.recv())
                    .await
                    .unwrap()
                    .unwrap();
            }
        }
    }
}

async fn over(site: &LocalSite, spec: &InstanceSpec) {
    site.stop(spec.id, Duration::ZERO, Generation(5)).await.unwrap();
    ended(site, spec.id).await;
    site.forget(spec.id, Generation(5)).await.unwrap();
    site.remove_logs(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deployment_may_need_survives_a_collection_after_a_restart() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let running = machine.spec("shop", "running");
    up(&site, &running).await;
    let frozen = machine.spec("shop", "frozen");
    up(&site, &frozen).await;
    site.freeze(frozen.id, Generation(2)).await.unwrap();
    let waiting = machine.spec("shop", "waiting");
    pin(&site, &waiting).await;
    drop(site);

    // A restart: whatever was known in memory is gone.
    machine.hand_images_over(false);
    let kept = images_in_use_at(&machine.state()).unwrap();
    assert_eq!(kept.len(), 1, "one image, three deployments");
    let site = machine.open().await;
    let images = machine.images();
    assert_eq!(site.images_in_use().await.unwrap(), kept);
    assert_eq!(site.pinned_deployments().await.unwrap().len(), 3);
    assert_eq!(collect(&site, &images).await, 0);

    // What runs cannot be released; what is over can, and each that is left still keeps the image.
    let refused = site.release_image(running.deployment_id).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    over(&site, &running).await;
    site.release_image(running.deployment_id).await.unwrap();
    site.release_image(running.deployment_id).await.unwrap();
    assert_eq!(collect(&site, &images).await, 0);
    over(&site, &frozen).await;
    site.release_image(frozen.deployment_id).await.unwrap();
    assert_eq!(collect(&site, &images).await, 0, "one waits to be started");
    up(&site, &waiting).await;
    over(&site, &waiting).await;
    assert_eq!(collect(&site, &images).await, 0, "it may start again");

    site.release_image(waiting.deployment_id).await.unwrap();
    assert_eq!(site.images_in_use().await.unwrap(), Vec::new());
    let young = CollectPolicy {
        unused_for: Some(Duration::ZERO),
        ..CollectPolicy::default()
    };
    let report = images.collect(&[], &young).await.unwrap();
    assert_eq!(report.layers, 0, "not within the grace");
    assert_eq!(collect(&site, &images).await, 1);
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_collected_when_it_is_not_known_what_is_needed() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    up(&site, &web).await;
    drop(site);
    machine.hand_images_over(false);
    let pin = machine
        .state()
        .join(format!("local/images/{}.json", web.deployment_id));
    let text = std::fs::read(&pin).unwrap();
    std::fs::remove_file(&pin).unwrap();
    let site = machine.open().await;
    assert!(
        site.images_in_use().await.is_err(),
        "it runs, and nobody knows what"
    );
    assert!(images_in_use_at(&machine.state()).is_err());
    std::fs::write(&pin, "{").unwrap();
    assert!(site.images_in_use().await.is_err());
    std::fs::write(&pin, text).unwrap();
    assert_eq!(site.images_in_use().await.unwrap().len(), 1);
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_deployments_than_are_remembered_all_find_their_image() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    // As many as wake together, and more than the site remembers.
    let mut specs = Vec::new();
    for number in 0..300 {
        let spec = machine.spec("shop", &format!("web-{number}"));
        pin(&site, &spec).await;
        specs.push(spec);
    }
    for spec in specs.iter().chain(&specs) {
        let observed = site.ensure_image(&spec.image).await.unwrap();
        assert!(matches!(observed, ObservedImage::Ready { .. }), "{observed:?}");
    }
    machine.finish(site).await;
}
