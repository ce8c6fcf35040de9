//! The way of an instance up: image, network, launch.
//!
//! One task an instance, begun after the order was written down. It ends with the program running, or with a
//! recorded end and its cause. A stop that comes while preparing is heard before the launch; one that comes while the
//! supervisor launches is carried out right after.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tram_image::Image;
use tram_sandbox::client::launch_patience;
use tram_sandbox::protocol::{
    ConfigFile, InstanceInfo, InstanceState, LaunchFailure, LaunchSpec, Refusal, User,
};
use tram_site::{EndCause, InstanceSpec};
use tram_types::{Clock, Generation, InstanceId, SystemClock};

use super::entries::Live;
use super::{Shared, entries, news, wire_id};
use crate::devices::Given;
use crate::guard::trust;
use crate::launch::{self, Account, ImageView, Place};
use crate::network::Slot;
use crate::record::End;
use crate::supervisor;

/// A launch is tried for so long while the supervisor cannot be reached, beside what the launch itself may take.
const LAUNCH_PATIENCE: Duration = Duration::from_secs(30);

/// Why it did not come up.
enum Failure {
    /// For the user, or for whoever looks after the machine.
    Message(String),
    /// The program could not be executed.
    Launch(LaunchFailure),
    /// It was told to stop.
    Halted,
}

impl Failure {
    fn machine(what: &str, error: &dyn std::error::Error) -> Self {
        let chain = crate::chain(error);
        tracing::error!(error = chain, "cannot {what}");
        Self::Message(format!("the machine cannot {what}: {chain}"))
    }
}

/// Brings the instance up, whatever it takes, and records how that went. Runs to its end also when the site is
/// dropped meanwhile: the next one finds a whole instance or none.
pub(super) async fn run(shared: Arc<Shared>, id: InstanceId) {
    let Some((spec, generation, slot, devices, halt)) = shared.lock().get(&id).and_then(|entry| {
        Some((
            entry.record.spec.clone(),
            entry.record.generation,
            entry.slot()?,
            entry.record.devices.clone(),
            entry.halt.clone(),
        ))
    }) else {
        return;
    };
    // Not interrupted in the middle: it takes milliseconds, and what the kernel was asked cannot be taken back.
    let begun = Instant::now();
    let prepared = prepare(&shared, &spec, generation, slot, devices).await;
    let prepared_after = begun.elapsed();
    let mut ordered = false;
    let outcome = match prepared {
        Ok(_) if halt.is_cancelled() => Err(Failure::Halted),
        Ok(launch) => {
            ordered = true;
            start(&shared, id, launch, &halt).await
        }
        Err(failure) => Err(failure),
    };
    // An order whose answer was lost may be carried out yet: it must not outlive its record's end.
    let doubtful = ordered && !matches!(outcome, Ok(_) | Err(Failure::Launch(_)));
    let cause = match outcome {
        Ok(pid) => {
            tracing::debug!(
                instance = %id,
                prepare_us = prepared_after.as_micros(),
                launch_us = (begun.elapsed() - prepared_after).as_micros(),
                "an instance was launched"
            );
            shared.go_up(id, pid, SystemClock.now(), false);
            let (mut lines, grace) = match shared.lock().get_mut(&id) {
                Some(entry) => (std::mem::take(&mut entry.early_lines), entry.stop_grace),
                None => (Vec::new(), None),
            };
            lines.extend(entries::note(
                spec.egress_allow.as_deref(),
                shared.network.has_v6(),
            ));
            shared.write_lines(id, lines).await;
            if let Some(grace) = grace {
                shared.send_stop(id, grace);
            }
            return;
        }
        Err(Failure::Halted) => EndCause::Stopped,
        Err(Failure::Message(message)) => EndCause::FailedToStart { message },
        Err(Failure::Launch(failure)) => EndCause::FailedToStart {
            message: crate::end::explain(&failure),
        },
    };
    shared.finish(
        id,
        End {
            cause,
            at: SystemClock.now(),
        },
    );
    if doubtful {
        news::end_given_up(&shared, id).await;
    }
}

/// Everything that can be made before the supervisor is asked.
async fn prepare(
    shared: &Arc<Shared>,
    spec: &InstanceSpec,
    generation: Generation,
    slot: Slot,
    devices: Option<Given>,
) -> Result<LaunchSpec, Failure> {
    let address = shared.network.address(slot);
    let member = entries::member(spec, address).map_err(|error| Failure::Message(error.to_string()))?;
    let known = entries::names(spec, shared.network.gateway(), shared.network.has_v6())
        .map_err(|error| Failure::Message(error.to_string()))?;
    // Before the program is there to ask.
    shared.directory.insert(address, known);
    let (image, namespace) = tokio::join!(image_and_account(shared, spec), async {
        let (namespace, admitted) = tokio::join!(shared.network.ensure(slot), shared.network.admit(member));
        admitted.and(namespace)
    });
    let namespace =
        namespace.map_err(|error| Failure::machine("set the network of an instance up", &error))?;
    let (image, account) = image?;
    let place = Place {
        address,
        gateway: shared.network.gateway(),
        namespace,
        number: slot.0,
    };
    let view = ImageView {
        config: &image.config,
        layers: &image.layers,
    };
    let from = shared.start_of(spec, &image).await.map_err(Failure::Message)?;
    let mut launch = launch::launch_spec(spec, generation.0, view, &account, &place, &shared.config)
        .map_err(|error| Failure::Message(error.to_string()))?;
    if let Some(given) = &devices {
        given.put_into(&mut launch).map_err(Failure::Message)?;
        tracing::info!(instance = %spec.id, devices = given.names(), "an instance is given devices");
    }
    if !spec.bound_secrets.is_empty() {
        let trusted = shared
            .trusted(spec, &image.layers)
            .await
            .map_err(Failure::Message)?;
        // The definition's own files win.
        let new = trusted
            .into_iter()
            .filter(|file| !launch.files.iter().any(|given| given.path == file.path))
            .collect::<Vec<_>>();
        launch.files.extend(new);
    }
    launch.disk_from = from.disk;
    launch.memory_from = match from.memory {
        Some(_) if launch.gvisor.is_some() => {
            return Err(Failure::Message(
                "the snapshot holds processes, which go on in the isolation class `container` alone: use an instance \
                 type of that class, or a FILESYSTEM snapshot"
                    .to_owned(),
            ));
        }
        Some(_) if devices.is_some() => {
            return Err(Failure::Message(
                "the snapshot holds processes, which cannot go on with devices that they did not have: use an instance type \
                 without GPUs, or a FILESYSTEM snapshot"
                    .to_owned(),
            ));
        }
        Some(memory) => Some(
            shared
                .go_on(spec, memory, &mut launch)
                .map_err(Failure::Message)?,
        ),
        None => None,
    };
    let models = shared
        .images
        .model_mounts(&spec.image)
        .map_err(Failure::Message)?;
    launch.binds.extend(models);
    launch.volumes = shared
        .volumes
        .mounts(spec)
        .map_err(|error| Failure::Message(error.to_string()))?;
    for mount in &spec.volumes {
        shared.volumes.look_again(mount.volume);
    }
    shared.keep_prompts(spec, &account.user, &mut launch);
    if let Some(entry) = shared.lock().get_mut(&spec.id) {
        entry.image = Some(image);
    }
    Ok(launch)
}

impl Shared {
    /// What makes programs of an instance trust the guard for the hosts of its secrets.
    async fn trusted(
        &self,
        spec: &InstanceSpec,
        layers: &[std::path::PathBuf],
    ) -> Result<Vec<ConfigFile>, String> {
        let mut hosts: Vec<String> = spec
            .bound_secrets
            .iter()
            .flat_map(|secret| secret.hosts.iter().cloned())
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        let root = self.authority.root(&hosts).map_err(|error| {
            format!("a certificate for the hosts of bound secrets cannot be made: {error}")
        })?;
        let layers = layers.to_vec();
        tokio::task::spawn_blocking(move || trust::files(&root, &layers))
            .await
            .map_err(|error| error.to_string())
    }
}

/// The image, and who its program runs as.
async fn image_and_account(shared: &Arc<Shared>, spec: &InstanceSpec) -> Result<(Image, Account), Failure> {
    let image = shared.images.ready(&spec.image).await.map_err(Failure::Message)?;
    match crate::images::user_of(&image).await {
        Ok(found) => {
            let account = Account {
                user: User {
                    uid: found.uid,
                    gid: found.gid,
                    groups: found.supplementary_gids,
                },
                home: Some(found.home.to_string_lossy().into_owned()),
            };
            Ok((image, account))
        }
        Err(error @ tram_image::Error::Interrupted { .. }) => {
            Err(Failure::machine("look the user of an image up", &error))
        }
        Err(error) => Err(Failure::Message(error.user_message())),
    }
}

/// Has the supervisor launch it, and finds out what happened when the answer is lost.
async fn start(
    shared: &Arc<Shared>,
    id: InstanceId,
    launch: LaunchSpec,
    halt: &CancellationToken,
) -> Result<Option<i32>, Failure> {
    let deadline = Instant::now() + LAUNCH_PATIENCE + launch_patience(&launch);
    let launch = Arc::new(launch);
    loop {
        if shared
            .lock()
            .get(&id)
            .is_none_or(|entry| !matches!(entry.live, Live::Preparing))
        {
            return Err(Failure::Halted);
        }
        let attempt = Arc::clone(&launch);
        let error = match shared
            .supervisor
            .call(move |client| client.launch((*attempt).clone()))
            .await
        {
            Ok(pid) => return Ok(Some(pid)),
            Err(supervisor::Error::Refused(Refusal::Launch { failure })) => {
                return Err(Failure::Launch(failure));
            }
            Err(supervisor::Error::Refused(Refusal::AlreadyExists { .. })) => {
                match present(shared, id).await.map(|info| info.state) {
                    Some(InstanceState::Running { pid } | InstanceState::Frozen { pid }) => {
                        return Ok(Some(pid));
                    }
                    // Its end is told by the supervisor's news, or has been.
                    Some(InstanceState::Exited { exit }) => {
                        shared.exited(id, &exit);
                        return Err(Failure::Halted);
                    }
                    // Another attempt of ours is under way in there.
                    Some(InstanceState::Starting | InstanceState::Checkpointed) | None => {
                        supervisor::Error::Closed
                    }
                }
            }
            // Nobody heard the order, so there is nothing to take back.
            Err(supervisor::Error::Unreachable(_)) if halt.is_cancelled() => return Err(Failure::Halted),
            Err(error @ supervisor::Error::Refused(_)) => {
                return Err(Failure::machine("launch an instance", &error));
            }
            Err(error) => error,
        };
        if Instant::now() >= deadline || shared.end.is_cancelled() {
            return Err(Failure::machine("launch an instance", &error));
        }
        tracing::info!(instance = %id, error = crate::chain(&error), "the answer to a launch was lost, asking again");
        // Waits for a restart; returns at once when there was none.
        shared.supervisor.connected().await;
    }
}

async fn present(shared: &Arc<Shared>, id: InstanceId) -> Option<InstanceInfo> {
    let name = wire_id(id).ok()?;
    let list = shared.supervisor.call(|client| client.list()).await.ok()?;
    list.into_iter().find(|info| info.id == name)
}
