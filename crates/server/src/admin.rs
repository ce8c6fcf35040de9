//! The operator's door: a Unix socket in the data directory, for commands that must reach the running control plane.
//!
//! Whoever can open it is root on this machine already, so there is no token. It carries what has no place in the
//! public API: the store of images, metrics, and what keeps an installation in its operator's hands: tokens, keys, backups.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixListener;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tram_image::{CollectReport, ImageStore, Progress, Reference};
use tram_model::ModelStore;
use tram_site_local::LocalSite;
use tram_store::Store;

use crate::{bootstrap, collector, data_plane::EdgeLink, metrics::Metrics};

/// Name of the socket in the data directory.
pub const SOCKET: &str = "admin.sock";

/// What the door leads to.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The images of this machine.
    pub images: ImageStore,
    /// The models of this machine.
    pub models: ModelStore,
    /// This machine, which knows what its images are needed for.
    pub site: Arc<LocalSite>,
    /// The edge, for its metrics.
    pub edge: Arc<EdgeLink>,
    /// The control plane's own metrics.
    pub metrics: Arc<Metrics>,
    /// The database.
    pub store: Store,
    /// Where clients on this machine reach the API.
    pub api_url: String,
}

/// A token that was made for the operator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// The token; shown once.
    pub token: String,
    /// Where it is good for.
    pub api_url: String,
}

/// What a rotation of the keys did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotatedKeys {
    /// The key that secrets are under now.
    pub key_id: String,
    /// How many were encrypted anew.
    pub secrets: u64,
}

/// What is to be copied where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backup {
    /// The file to write, an absolute path.
    pub file: PathBuf,
}

/// An image, as `tram images ls` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRow {
    /// Its name.
    pub reference: String,
    /// Its manifest's digest.
    pub digest: String,
    /// Bytes of its unpacked layers.
    pub size_bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
}

/// What a collection took, as `tram images prune` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    /// Names forgotten.
    pub images: Vec<String>,
    /// Layers removed.
    pub layers: usize,
    /// Bytes that came free.
    pub freed_bytes: u64,
}

/// How an import is asked for.
#[derive(Debug, Default, Deserialize)]
pub struct ImportQuery {
    /// Keep it under this name.
    name: Option<String>,
}

/// Listens on the socket; one left by a process that died is replaced.
///
/// # Errors
/// When the socket cannot be made.
pub fn bind(path: &PathBuf) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What is served on the socket.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/images", get(list))
        .route("/images/import", post(import))
        .route("/images/prune", post(prune))
        .merge(crate::models::routes())
        .route("/metrics", get(metrics))
        .route("/tokens", post(new_token))
        .route("/keys/rotate", post(rotate_keys))
        .route("/backup", post(backup))
        .with_state(admin)
}

/// A failure in the shape of the API's errors.
pub(crate) struct Failure(pub(crate) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"status": 400, "code": "invalid_argument", "message": self.0});
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    }
}

impl From<tram_image::Error> for Failure {
    fn from(error: tram_image::Error) -> Self {
        Self(error.user_message())
    }
}

impl From<tram_store::Error> for Failure {
    fn from(error: tram_store::Error) -> Self {
        Self(crate::chain(&error))
    }
}

async fn new_token(State(admin): State<Admin>) -> Result<Json<NewToken>, Failure> {
    let Some(organization) = bootstrap::first_organization(&admin.store).await? else {
        return Err(Failure("there is no organization yet".to_owned()));
    };
    let token = bootstrap::draw();
    bootstrap::admit(
        &admin.store,
        organization.id,
        &token,
        "operator",
        "Made by `tram admin new-token`",
    )
    .await?;
    Ok(Json(NewToken {
        token,
        api_url: admin.api_url,
    }))
}

async fn rotate_keys(State(admin): State<Admin>) -> Result<Json<RotatedKeys>, Failure> {
    let rotated = admin.store.rotate_secrets().await?;
    Ok(Json(RotatedKeys {
        key_id: rotated.key_id,
        secrets: rotated.secrets,
    }))
}

async fn backup(State(admin): State<Admin>, Json(wanted): Json<Backup>) -> Result<Json<Backup>, Failure> {
    admin.store.backup_to(&wanted.file).await?;
    Ok(Json(wanted))
}

async fn list(State(admin): State<Admin>) -> Result<Json<Vec<ImageRow>>, Failure> {
    Ok(Json(rows(&admin.images).await?))
}

async fn import(
    State(admin): State<Admin>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<Json<Vec<ImageRow>>, Failure> {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    let reader = SyncIoBridge::new(StreamReader::new(stream));
    Ok(Json(
        import_from(&admin.images, reader, query.name.as_deref()).await?,
    ))
}

async fn prune(State(admin): State<Admin>) -> Result<Json<Pruned>, Failure> {
    match collector::collect(&admin.images, &admin.site, &collector::everything()).await {
        Ok(report) => Ok(Json(report.into())),
        Err(collector::Error::Images(error)) => Err(error.into()),
        Err(error @ collector::Error::InUse(_)) => Err(Failure(crate::chain(&error))),
    }
}

async fn metrics(State(admin): State<Admin>) -> String {
    crate::metrics::exposition(&admin.metrics, &admin.edge).await
}

/// Every image of a store.
///
/// # Errors
/// When the store cannot be read.
pub async fn rows(images: &ImageStore) -> Result<Vec<ImageRow>, tram_image::Error> {
    let kept = images.list().await?;
    Ok(kept
        .into_iter()
        .map(|image| ImageRow {
            reference: image.reference.to_string(),
            digest: image.manifest_digest.to_string(),
            size_bytes: image.size_bytes,
            complete: image.complete,
        })
        .collect())
}

/// Takes the images of an archive into a store.
///
/// # Errors
/// When the archive or the name is none.
pub async fn import_from(
    images: &ImageStore,
    archive: impl std::io::Read + Send + 'static,
    name: Option<&str>,
) -> Result<Vec<ImageRow>, tram_image::Error> {
    let name = name.map(str::parse::<Reference>).transpose()?;
    let (progress, _watcher) = Progress::channel();
    let imported = images.import(archive, name, &progress).await?;
    let all = rows(images).await?;
    Ok(all
        .into_iter()
        .filter(|row| {
            imported
                .iter()
                .any(|image| image.reference.to_string() == row.reference)
        })
        .collect())
}

impl From<CollectReport> for Pruned {
    fn from(report: CollectReport) -> Self {
        Self {
            images: report.images.iter().map(ToString::to_string).collect(),
            layers: report.layers,
            freed_bytes: report.freed_bytes,
        }
    }
}
