//! Takes images away that nobody needs, now and then and when the disk is full.
//!
//! What must stay is asked of the site, which has it on record: the image of every deployment that is not over, be it
//! running, asleep or without an instance, and of every instance. When that cannot be told in full, nothing is taken.
//! Deployments let their image go when they are over; what a crash left behind is found here.

use std::{io, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tram_image::{CollectPolicy, CollectReport, ImageStore};
use tram_site::Site;
use tram_site_local::LocalSite;
use tram_store::Store;
use tram_types::{DeploymentId, status::DeploymentStatus, units::GIB};

/// Between two collections: a disk fills with images in hours, and each look reads every record.
const PERIOD: Duration = Duration::from_secs(3600);
/// After the start, when whatever was cut in half has been carried on.
const FIRST: Duration = Duration::from_secs(600);
/// After a pull that found the disk full, the next ones do not start another collection at once.
const PAUSE: Duration = Duration::from_secs(30);
/// A pulled image that no deployment needs is kept for so long: it makes the next deployment of it quick.
const UNUSED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Images that no deployment needs are kept up to so many bytes of all images together.
const KEEP_BYTES: u64 = 32 * GIB;

/// Why a collection did not take place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What must stay is not known.
    #[error("cannot tell which images are needed, so none was removed")]
    InUse(#[source] io::Error),
    /// The store of images failed.
    #[error("cannot remove images")]
    Images(#[source] tram_image::Error),
}

/// What is collected when nobody asks.
#[must_use]
pub fn usual() -> CollectPolicy {
    CollectPolicy {
        unused_for: Some(UNUSED_FOR),
        keep_bytes: Some(KEEP_BYTES),
        ..CollectPolicy::default()
    }
}

/// Everything that nobody needs, but for what is too young to be sure.
#[must_use]
pub fn everything() -> CollectPolicy {
    CollectPolicy {
        unused_for: Some(Duration::ZERO),
        ..CollectPolicy::default()
    }
}

/// Collects until `stop`.
pub async fn run(images: ImageStore, site: Arc<LocalSite>, store: Store, stop: CancellationToken) {
    let mut wait = FIRST;
    loop {
        let policy = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => usual(),
            () = site.space_wanted() => everything(),
        };
        wait = PERIOD;
        release_left_over(&site, &store).await;
        match collect(&images, &site, &policy).await {
            Ok(report) if report == CollectReport::default() => {}
            Ok(report) => tracing::info!(
                images = report.images.len(),
                layers = report.layers,
                freed_bytes = report.freed_bytes,
                "removed images that nobody needs"
            ),
            Err(error) => tracing::error!(error = crate::chain(&error), "images are not collected"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// One collection.
///
/// # Errors
/// See [`Error`]; nothing that is needed was taken.
pub async fn collect(
    images: &ImageStore,
    site: &LocalSite,
    policy: &CollectPolicy,
) -> Result<CollectReport, Error> {
    let mut in_use = site.images_in_use().await.map_err(Error::InUse)?;
    in_use.extend(crate::engine_image::kept(images).await.map_err(Error::Images)?);
    images.collect(&in_use, policy).await.map_err(Error::Images)
}

/// Lets the images go of deployments that ended or vanished without doing so.
async fn release_left_over(site: &LocalSite, store: &Store) {
    let pinned = match site.pinned_deployments().await {
        Ok(pinned) => pinned,
        Err(error) => {
            tracing::warn!(%error, "cannot read which images are kept");
            return;
        }
    };
    for deployment in pinned {
        if !is_over(store, deployment).await {
            continue;
        }
        // Refused while an instance of it is still there; the next look tries again.
        if let Err(error) = site.release_image(deployment).await {
            tracing::debug!(%deployment, error = crate::chain(&error), "an image is kept for now");
        }
    }
}

/// Whether a deployment will never run again. Unknown is no.
async fn is_over(store: &Store, deployment: DeploymentId) -> bool {
    match store.deployment_unscoped(deployment).await {
        Ok(found) => found.status.is_final() && found.status != DeploymentStatus::Stashed,
        Err(tram_store::Error::NotFound { .. }) => true,
        Err(_) => false,
    }
}
