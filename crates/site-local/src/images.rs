//! Images: pulled once, and pinned for a deployment.
//!
//! Used by `ensure_image` and by the start of an instance. A name is looked up once for each deployment; from then
//! on the deployment runs what the name stood for at that time, also after the tag has moved. What was pinned and is here is
//! ready at once: who had to wait for news of it, and found it forgotten then because others had theirs meanwhile, would
//! wait for ever where enough wake together.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tram_image::registry::Credentials;
use tram_image::{
    Digest, Freshness, Image, ImageStore, Origin, Phase, Progress, PullPolicy, PullRequest, Reference,
};
use tram_model::ModelStore;
use tram_site::{Changed, Error, ImageSpec, ObservedImage};
use tram_types::{DeploymentId, InstanceId};

use crate::record::{PinnedImage, Store};

/// Pulls at once: more would share the same line and disk.
const PULLS_MAX: usize = 4;
/// A failure that may pass is tried again no sooner, whoever asks.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Deployments whose image is remembered as looked up; beyond, the oldest is looked up again from its pin, which
/// costs a few small files.
const REMEMBERED_MAX: usize = 256;

/// Users looked up at once: each may hold a thousand open directories, and takes milliseconds.
const LOOK_UPS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Images {
    store: ImageStore,
    pub(crate) models: Option<ModelStore>,
    pub(crate) records: Store,
    states: Mutex<HashMap<DeploymentId, State>>,
    pulls: Semaphore,
    changed: broadcast::Sender<Changed>,
    /// A pull failed because the disk is full.
    space: Notify,
    end: CancellationToken,
}

#[derive(Debug)]
enum State {
    Pulling {
        progress: watch::Receiver<Progress>,
        /// Nobody wants it any more.
        released: CancellationToken,
    },
    Ready {
        image: Box<Image>,
        at: Instant,
    },
    Failed {
        message: String,
        retryable: bool,
        at: Instant,
    },
}

impl Images {
    pub(crate) fn new(
        store: ImageStore,
        models: Option<ModelStore>,
        records: Store,
        changed: broadcast::Sender<Changed>,
        end: CancellationToken,
    ) -> Self {
        Self {
            store,
            models,
            records,
            states: Mutex::default(),
            pulls: Semaphore::new(PULLS_MAX),
            changed,
            space: Notify::new(),
            end,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how far the image is, and begins to get it when nobody does.
    pub(crate) async fn ensure(self: &Arc<Self>, spec: &ImageSpec) -> Result<ObservedImage, Error> {
        let reference = parse(&spec.reference)?;
        if !self.lock().contains_key(&spec.deployment)
            && let Ok(Some(image)) = self.pinned(spec).await
            && self.hold_model(spec).is_ok()
            && let Some(observed) = self.take_up(spec.deployment, image)
        {
            return Ok(observed);
        }
        let mut states = self.lock();
        match states.get(&spec.deployment) {
            Some(State::Failed {
                retryable: true, at, ..
            }) if at.elapsed() >= RETRY_PAUSE => {}
            Some(state) => return Ok(observed(state)),
            None => {}
        }
        let (progress, receiver) = Progress::channel();
        let released = self.end.child_token();
        let state = State::Pulling {
            progress: receiver,
            released: released.clone(),
        };
        let now = observed(&state);
        remember(&mut states, spec.deployment, state);
        drop(states);
        let (images, spec) = (Arc::clone(self), spec.clone());
        tokio::spawn(released.clone().run_until_cancelled_owned(async move {
            let result = images.pull(&reference, &spec, &progress).await;
            let state = match result {
                Ok(image) => match images.hold_model(&spec) {
                    Ok(()) => State::Ready {
                        image: Box::new(image),
                        at: Instant::now(),
                    },
                    Err(trouble) => State::Failed {
                        message: trouble.message,
                        retryable: trouble.retryable,
                        at: Instant::now(),
                    },
                },
                Err(error) => {
                    tracing::info!(
                        image = spec.reference,
                        error = crate::chain(&error),
                        "an image cannot be had"
                    );
                    if is_full_disk(&error) {
                        images.space.notify_one();
                    }
                    State::Failed {
                        message: error.user_message(),
                        retryable: error.retryable(),
                        at: Instant::now(),
                    }
                }
            };
            {
                let mut states = images.lock();
                if released.is_cancelled() {
                    images.unpin(spec.deployment);
                    return;
                }
                remember(&mut states, spec.deployment, state);
            }
            // Nobody may be listening.
            let _unheard = images.changed.send(Changed::Image(spec.reference));
        }));
        Ok(now)
    }

    /// Lets go of the image of a deployment, and ends a pull for it.
    pub(crate) fn release(&self, deployment: DeploymentId) -> Result<(), Error> {
        let mut states = self.lock();
        if let Some(State::Pulling { released, .. }) = states.remove(&deployment) {
            released.cancel();
        }
        // Under the lock, so that a pull that has just finished sees it or is seen.
        self.records
            .unpin_image(deployment)
            .map_err(|error| Error::unavailable("cannot let an image go", error))
    }

    /// Gives a deployment the image that another one runs, so that no registry is asked for it.
    pub(crate) fn inherit(&self, from: DeploymentId, to: DeploymentId) -> Result<(), Error> {
        let mut states = self.lock();
        if states.contains_key(&to) || self.records.pinned_image(to).is_some() {
            return Ok(());
        }
        if let Some(pinned) = self.records.pinned_image(from) {
            self.records.pin_image(to, &pinned).map_err(|error| {
                Error::unavailable("cannot write down which image a deployment runs", error)
            })?;
        }
        if let Some(State::Ready { image, .. }) = states.get(&from) {
            let state = State::Ready {
                image: image.clone(),
                at: Instant::now(),
            };
            remember(&mut states, to, state);
        }
        Ok(())
    }

    fn unpin(&self, deployment: DeploymentId) {
        if let Err(error) = self.records.unpin_image(deployment) {
            tracing::warn!(%deployment, %error, "cannot let an image go");
        }
    }

    /// Waits until a pull fails because the disk is full. One that failed since the last call counts.
    pub(crate) async fn space_wanted(&self) {
        self.space.notified().await;
    }

    /// The image of a deployment that was made ready before. The error is for the user.
    pub(crate) async fn ready(&self, spec: &ImageSpec) -> Result<Image, String> {
        if let Some(State::Ready { image, .. }) = self.lock().get(&spec.deployment) {
            return Ok(Image::clone(image));
        }
        let Some(pin) = self.pin(spec) else {
            return Err(format!("the image {} is not on this machine yet", spec.reference));
        };
        let reference = parse(&pin.pinned).map_err(|error| error.to_string())?;
        let image = match self.held(&pin, &reference).await {
            Ok(Some(image)) => Ok(image),
            Ok(None) => self.kept(&reference, spec).await,
            Err(error) => Err(error),
        };
        let image = image.map_err(|error| error.user_message())?;
        let state = State::Ready {
            image: Box::new(image.clone()),
            at: Instant::now(),
        };
        remember(&mut self.lock(), spec.deployment, state);
        Ok(image)
    }

    /// What the deployment's image was when it was first looked up, if it has that name still.
    fn pin(&self, spec: &ImageSpec) -> Option<PinnedImage> {
        let pin = self.records.pinned_image(spec.deployment);
        pin.filter(|pin| pin.reference == spec.reference)
    }

    /// That image, if it is here. Asks no registry.
    async fn pinned(&self, spec: &ImageSpec) -> Result<Option<Image>, tram_image::Error> {
        match self.pin(spec).map(|pin| (Reference::from_str(&pin.pinned), pin)) {
            Some((Ok(reference), pin)) => self.held(&pin, &reference).await,
            _ => Ok(None),
        }
    }

    /// What was pinned, as the store has it. The deployment has shown its right to it when it was pinned, and credentials
    /// are not written down.
    async fn held(
        &self,
        pin: &PinnedImage,
        reference: &Reference,
    ) -> Result<Option<Image>, tram_image::Error> {
        let held = self.store.held(reference).await?;
        Ok(held.filter(|image| image.manifest_digest.to_string() == pin.manifest_digest))
    }

    /// Remembers an image that was looked up for a deployment. `None`: something else is known by now, or it was let go.
    fn take_up(&self, deployment: DeploymentId, image: Image) -> Option<ObservedImage> {
        let mut states = self.lock();
        if states.contains_key(&deployment) || self.records.pinned_image(deployment).is_none() {
            return None;
        }
        let state = State::Ready {
            image: Box::new(image),
            at: Instant::now(),
        };
        let now = observed(&state);
        remember(&mut states, deployment, state);
        Some(now)
    }

    async fn pull(
        &self,
        reference: &Reference,
        spec: &ImageSpec,
        progress: &tram_image::ProgressSender,
    ) -> Result<Image, tram_image::Error> {
        let _permit = self.pulls.acquire().await;
        if let Some(pin) = self.pin(spec)
            && let Ok(reference) = Reference::from_str(&pin.pinned)
        {
            let request = request(&reference, spec).policy(PullPolicy::IfNotPresent);
            return self.store.ensure(&request, progress).await;
        }
        let image = self
            .store
            .ensure(&request(reference, spec).policy(PullPolicy::Always), progress)
            .await?;
        let by_digest = format!(
            "{}/{}@{}",
            image.reference.registry(),
            image.reference.repository(),
            image.resolved_digest
        );
        let mut pinned = PinnedImage {
            reference: spec.reference.clone(),
            pinned: spec.reference.clone(),
            manifest_digest: image.manifest_digest.to_string(),
            model: None,
            adapters: Vec::new(),
            draft: None,
        };
        // Kept under its digest too, so that a tag that moves takes nothing away. Nobody moves the name of an imported
        // image but the operator, and no registry need hear of it.
        if let Freshness::StandsIn { .. } = &image.freshness {
            // For as long as the deployment lives, also when the registry is back: its instances must be alike.
            pinned.pinned = image.reference.to_string();
        }
        if image.origin == Origin::Registry
            && let Ok(reference) = Reference::from_str(&by_digest)
        {
            match self.kept(&reference, spec).await {
                Ok(_) => pinned.pinned = by_digest,
                Err(error) => tracing::info!(
                    image = spec.reference,
                    error = crate::chain(&error),
                    "an image cannot be pinned to its digest"
                ),
            }
        }
        if let Err(error) = self.records.pin_image(spec.deployment, &pinned) {
            tracing::warn!(image = spec.reference, %error, "cannot write down which image a deployment runs");
        }
        Ok(image)
    }

    async fn kept(&self, reference: &Reference, spec: &ImageSpec) -> Result<Image, tram_image::Error> {
        let request = request(reference, spec).policy(PullPolicy::IfNotPresent);
        self.store.ensure(&request, &Progress::channel().0).await
    }
}

/// Who the program of an image runs as.
pub(crate) async fn user_of(image: &Image) -> Result<tram_image::ResolvedUser, tram_image::Error> {
    static LOOKING: Semaphore = Semaphore::const_new(LOOK_UPS_MAX);
    let permit = LOOKING.acquire().await;
    let image = image.clone();
    let looked = tokio::task::spawn_blocking(move || {
        // Held by the thread: who waits may go away before it is done.
        let _permit = permit;
        tram_image::resolve_user(&image.layers, &image.config.user)
    });
    looked.await?
}

/// Whether there was no room on the disk.
fn is_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let full = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(full))
}

/// The manifests to keep: of what is pinned, and of instances (id, deployment, image if it is known).
pub(crate) fn in_use(
    pinned: &HashMap<DeploymentId, PinnedImage>,
    live: Vec<(InstanceId, DeploymentId, Option<Digest>)>,
) -> io::Result<Vec<Digest>> {
    let mut digests: Vec<Digest> = Vec::new();
    for image in pinned.values() {
        digests.push(image.manifest_digest.parse().map_err(io::Error::other)?);
    }
    for (instance, deployment, image) in live {
        match image {
            Some(digest) => digests.push(digest),
            None if pinned.contains_key(&deployment) => {}
            None => {
                return Err(io::Error::other(format!(
                    "instance {instance} runs and its image is not on record"
                )));
            }
        }
    }
    digests.sort_unstable();
    digests.dedup();
    Ok(digests)
}

/// The manifests of all images that a site which is not open must find again.
///
/// # Errors
/// As [`crate::LocalSite::images_in_use`].
pub fn images_in_use_at(state_dir: &Path) -> io::Result<Vec<Digest>> {
    let Some(records) = Store::look(state_dir) else {
        return Ok(Vec::new());
    };
    let live = records
        .load()?
        .into_iter()
        .filter(|record| record.end.is_none())
        .map(|record| (record.spec.id, record.spec.image.deployment, None))
        .collect();
    in_use(&records.pinned_images()?, live)
}

fn remember(states: &mut HashMap<DeploymentId, State>, deployment: DeploymentId, state: State) {
    if states.len() >= REMEMBERED_MAX && !states.contains_key(&deployment) {
        let oldest = states
            .iter()
            .filter_map(|(id, state)| match state {
                State::Ready { at, .. } | State::Failed { at, .. } => Some((*at, *id)),
                State::Pulling { .. } => None,
            })
            .min();
        if let Some((_, id)) = oldest {
            states.remove(&id);
        }
    }
    states.insert(deployment, state);
}

fn parse(reference: &str) -> Result<Reference, Error> {
    Reference::from_str(reference).map_err(|error| Error::Refused {
        message: error.to_string(),
    })
}

fn request(reference: &Reference, spec: &ImageSpec) -> PullRequest {
    let request = PullRequest::new(reference.clone());
    match &spec.credentials {
        Some(given) if given.is_for(reference.registry()) => {
            request.credentials(Credentials::basic(&given.username, &given.password))
        }
        _ => request,
    }
}

/// What the user must know of an image that can be used.
fn notice(image: &Image) -> Option<String> {
    match &image.freshness {
        Freshness::StandsIn { reason } => Some(format!(
            "the image {} stands in for the one that was named: {reason}",
            image.reference
        )),
        _ => None,
    }
}

fn observed(state: &State) -> ObservedImage {
    match state {
        State::Pulling { progress, .. } => {
            let progress = progress.borrow();
            let layers = progress.blobs.len();
            let ready = progress.blobs.iter().filter(|blob| blob.ready).count();
            let step = match progress.phase {
                Phase::Resolving => "asking the registry".to_owned(),
                Phase::Pulling => format!("fetching layers, {ready} of {layers} ready"),
                Phase::Unpacking => format!("unpacking layers, {ready} of {layers} ready"),
                Phase::Ready => "ready".to_owned(),
            };
            ObservedImage::Pulling {
                done_bytes: progress.done_bytes(),
                total_bytes: (layers > 0).then(|| progress.total_bytes()),
                step,
            }
        }
        State::Ready { image, .. } => ObservedImage::Ready {
            digest: image.resolved_digest.to_string(),
            size_bytes: image.size_bytes,
            notice: notice(image),
        },
        State::Failed {
            message, retryable, ..
        } => ObservedImage::Failed {
            message: message.clone(),
            retryable: *retryable,
        },
    }
}
