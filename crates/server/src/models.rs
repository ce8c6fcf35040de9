//! `tram models import|rm`: through the running control plane when there is one, else on the store itself; and the
//! operator's door's side of it.

mod login;
mod pull;
mod registry;

use std::path::Path;

use anyhow::Context;
use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::TryStreamExt;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tram_cli::{ModelsAction, Printer, Settings};
use tram_controller::packing::ModelMemory;
use tram_model::{
    Digest, Error, Model, ModelStore, Taken, catalog,
    source::Source,
    store::{DIGEST_PREFIX, NewModel, check_name},
};

use crate::{
    admin::{self, Admin, Failure},
    door::{Refusal, ask, empty},
    images::{archive_body, archive_reader, mib, percent},
    paths::Paths,
};

/// Carries out one of the commands on the store of models.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn run(settings: &Settings, action: ModelsAction, printer: &Printer) -> anyhow::Result<()> {
    let paths = Paths::new(&settings.data_dir);
    let socket = paths.root().join(admin::SOCKET);
    let running = crate::processes::DirectoryLock::holder(paths.root(), crate::up::LOCK_NAME).is_some();
    match action {
        ModelsAction::Import { name, file } => {
            let new = NewModel {
                name,
                ..NewModel::default()
            };
            let model = take_in(&paths, settings, running, new, &file).await?;
            show(&model, printer)?;
        }
        ModelsAction::Pull {
            source,
            name,
            sha256,
            hub,
            token,
            secret,
        } => {
            let (place, known_as, origin) = catalog::place(&source).map_err(anyhow::Error::msg)?;
            let digest = sha256.map(|sum| Digest::parse(&format!("{DIGEST_PREFIX}{sum}")));
            let new = NewModel {
                name: name.unwrap_or(known_as),
                origin,
                digest: digest.transpose().map_err(anyhow::Error::msg)?,
            };
            // Before gigabytes come that have no name.
            check_name(&new.name)
                .map_err(|rule| anyhow::anyhow!("`{}` cannot be the name of a model: it {rule}", new.name))?;
            let login = match secret {
                Some(name) => Some(login::reveal(&paths, running, name, &place, &hub).await?),
                None => None,
            };
            let (file, new) = match &place {
                Source::Registry(reference) => {
                    let (file, digest) =
                        registry::fetch(settings, &paths, reference, login, new.digest.as_ref(), printer)
                            .await?;
                    let digest = Some(digest);
                    (file, NewModel { digest, ..new })
                }
                Source::Web(url) => (pull::fetch(&paths, url, None, printer).await?, new),
                Source::Hub { .. } => {
                    // Nobody but the hub is shown it.
                    let token = login.map(|login| login.password).or(token.map(|token| token.0));
                    let file = pull::fetch(&paths, &place.url(&hub), token.as_deref(), printer).await?;
                    (file, new)
                }
            };
            let taken = take_in(&paths, settings, running, new, &file).await;
            // Gigabytes that came are kept where another try may find a use for them.
            if taken.as_ref().err().is_none_or(is_of_the_file) {
                pull::forget(&file);
            }
            show(&taken?, printer)?;
        }
        ModelsAction::Rm { name } => {
            let model: Model = if running {
                let path = format!("/models/remove?name={}", percent(&name));
                ask(&socket, Method::POST, &path, empty()).await?
            } else {
                open(&paths, settings)?.remove(&name, |model| {
                    // The site is not open, but its records say what the next start needs.
                    tram_site_local::model_uses_at(&paths.site(), model)
                })?
            };
            printer.done(
                &serde_json::to_value(&model)?,
                format!("model `{}` removed", model.name),
            )?;
        }
    }
    Ok(())
}

/// What the door says of a file that is no good.
const BAD_FILE: &str = "bad_file";

/// Whether the file itself was refused, by whoever has the store open.
fn is_of_the_file(error: &anyhow::Error) -> bool {
    let here = error.downcast_ref::<Error>().is_some_and(Error::is_of_the_file);
    let there = |refusal: &Refusal| refusal.code == BAD_FILE;
    here || error.downcast_ref::<Refusal>().is_some_and(there)
}

/// Takes a file in, by whoever has the store open.
async fn take_in(
    paths: &Paths,
    settings: &Settings,
    running: bool,
    new: NewModel,
    file: &Path,
) -> anyhow::Result<Taken> {
    if !running {
        let mut reader = archive_reader(file)?;
        // The site is not open, but its records say what the next start needs.
        let uses = |model: &Digest| tram_site_local::model_uses_at(&paths.site(), model);
        return Ok(open(paths, settings)?.import(&new, &mut reader, uses)?);
    }
    let mut path = format!(
        "/models/import?name={}&origin={}",
        percent(&new.name),
        percent(&new.origin)
    );
    if let Some(digest) = &new.digest {
        path.push_str(&format!("&digest={}", percent(&digest.to_string())));
    }
    let socket = paths.root().join(admin::SOCKET);
    ask(&socket, Method::POST, &path, archive_body(file).await?).await
}

fn show(taken: &Taken, printer: &Printer) -> anyhow::Result<()> {
    for removed in &taken.removed {
        printer.note(format_args!(
            "model `{removed}` was removed to make room: nobody used it"
        ));
    }
    let model = &taken.model;
    let said = format!(
        "model `{}`: {}, {} million parameters, {}, {:.1} MiB",
        model.name,
        model.gguf.architecture,
        model.gguf.parameters / MILLION,
        model.gguf.quantization,
        mib(model.size_bytes)
    );
    printer.done(&serde_json::to_value(model)?, said)?;
    Ok(())
}

const MILLION: u64 = 1_000_000;

/// What the models of this machine have together; `None`: nothing is bounded.
#[must_use]
pub fn memory(settings: &Settings) -> Option<ModelMemory> {
    let bytes = settings.models_memory.bytes(crate::host::memory_bytes())?;
    Some(ModelMemory {
        region: settings.region.clone(),
        bytes,
    })
}

/// The store of models.
///
/// # Errors
/// When it cannot be opened.
pub fn open(paths: &Paths, settings: &Settings) -> anyhow::Result<ModelStore> {
    if let Err((room, source)) = paths.ensure() {
        return Err(source).with_context(|| format!("cannot make {}: are you root?", room.display()));
    }
    Ok(ModelStore::open(&paths.models())?.bounded(settings.models_space_max.bytes()))
}

/// The door's side.
pub(crate) fn routes() -> Router<Admin> {
    Router::new()
        .route("/models/import", post(import))
        .route("/models/remove", post(remove))
        .route(login::PATH, post(login::answer))
}

/// Which model is meant.
#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    /// Where it came from.
    #[serde(default)]
    origin: String,
    /// What it must be.
    digest: Option<Digest>,
}

/// Why the store did not do something.
enum Refused {
    Store(Error),
    Other(Failure),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Store(error) if error.is_of_the_file() => {
                let body = json!({"status": 400, "code": BAD_FILE, "message": crate::chain(&error)});
                (StatusCode::BAD_REQUEST, Json(body)).into_response()
            }
            Self::Store(error) => Failure(crate::chain(&error)).into_response(),
            Self::Other(failure) => failure.into_response(),
        }
    }
}

async fn import(
    State(admin): State<Admin>,
    Query(named): Query<Named>,
    body: Body,
) -> Result<Json<Taken>, Refused> {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    let mut reader = SyncIoBridge::new(StreamReader::new(stream));
    let new = NewModel {
        name: named.name,
        origin: named.origin,
        digest: named.digest,
    };
    blocking(move || {
        let uses = |model: &Digest| admin.site.model_uses(model);
        admin.models.import(&new, &mut reader, uses)
    })
    .await
}

async fn remove(State(admin): State<Admin>, Query(named): Query<Named>) -> Result<Json<Model>, Refused> {
    blocking(move || {
        admin
            .models
            .remove(&named.name, |model| admin.site.model_uses(model))
    })
    .await
}

/// The store works on files, and gigabytes of them.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<Json<T>, Refused> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(Json(done?)),
        Err(error) => Err(Refused::Other(Failure(crate::chain(&error)))),
    }
}
