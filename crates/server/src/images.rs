//! `tram images`: through the running control plane when there is one, else on the store itself.

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{Method, Request, body::Bytes, body::Frame};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{io::AsyncRead, net::UnixStream};
use tokio_util::io::ReaderStream;
use tram_cli::{ImagesAction, Printer, Settings};
use tram_image::ImageStore;

use crate::{
    admin::{self, ImageRow, Pruned},
    collector,
    paths::Paths,
};

type AnyBody = BoxBody<Bytes, std::io::Error>;

/// Carries out one of the commands on images.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn run(settings: &Settings, action: ImagesAction, printer: &Printer) -> anyhow::Result<()> {
    let paths = Paths::new(&settings.data_dir);
    let socket = paths.root().join(admin::SOCKET);
    let running = crate::processes::DirectoryLock::holder(paths.root(), crate::up::LOCK_NAME).is_some();
    match action {
        ImagesAction::Ls => {
            let rows: Vec<ImageRow> = if running {
                ask(&socket, Method::GET, "/images", empty()).await?
            } else {
                admin::rows(&open(settings, &paths)?).await.map_err(for_user)?
            };
            show(printer, &rows)
        }
        ImagesAction::Import { archive, name } => {
            let rows: Vec<ImageRow> = if running {
                let path = match &name {
                    Some(name) => format!("/images/import?name={}", percent(name)),
                    None => "/images/import".to_owned(),
                };
                ask(&socket, Method::POST, &path, archive_body(&archive).await?).await?
            } else {
                let images = open(settings, &paths)?;
                let reader = archive_reader(&archive)?;
                admin::import_from(&images, reader, name.as_deref())
                    .await
                    .map_err(for_user)?
            };
            show(printer, &rows)
        }
        ImagesAction::Prune => {
            let pruned: Pruned = if running {
                ask(&socket, Method::POST, "/images/prune", empty()).await?
            } else {
                let images = open(settings, &paths)?;
                // The site is not open, but its records say what the next start needs.
                let in_use = tram_site_local::images_in_use_at(&paths.site())
                    .context("cannot tell which images are needed, so none was removed")?;
                let report = images.collect(&in_use, &collector::everything()).await;
                report.map_err(for_user)?.into()
            };
            let value = serde_json::to_value(&pruned)?;
            printer.value(&value, || {
                format!(
                    "{} images forgotten, {} layers removed, {:.1} MiB freed",
                    pruned.images.len(),
                    pruned.layers,
                    mib(pruned.freed_bytes)
                )
            })?;
            Ok(())
        }
    }
}

/// The store of images as the settings say.
///
/// # Errors
/// When it cannot be opened.
pub fn open(settings: &Settings, paths: &Paths) -> anyhow::Result<ImageStore> {
    let mut wanted = tram_image::Settings::default();
    if !settings.registries_dir.as_os_str().is_empty() {
        wanted.registries = tram_image::RegistryConfig::from_directory(&settings.registries_dir);
    }
    if let Err((room, source)) = paths.ensure() {
        return Err(source).with_context(|| format!("cannot make {}: are you root?", room.display()));
    }
    ImageStore::open(paths.images(), wanted).map_err(for_user)
}

fn for_user(error: tram_image::Error) -> anyhow::Error {
    anyhow::Error::msg(error.user_message())
}

fn show(printer: &Printer, rows: &[ImageRow]) -> anyhow::Result<()> {
    let items = rows.iter().map(|row| json!(row)).collect::<Vec<_>>();
    printer.list(&items, "images", &["IMAGE", "DIGEST", "SIZE"], |item| {
        let digest = item["digest"].as_str().unwrap_or_default();
        vec![
            item["reference"].as_str().unwrap_or_default().to_owned(),
            digest.chars().take("sha256:".len() + 12).collect(),
            format!("{:.1} MiB", mib(item["size_bytes"].as_u64().unwrap_or(0))),
        ]
    })?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / tram_types::units::MIB as f64
}

fn archive_reader(archive: &Path) -> anyhow::Result<Box<dyn std::io::Read + Send>> {
    if archive == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = std::fs::File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    Ok(Box::new(file))
}

async fn archive_body(archive: &Path) -> anyhow::Result<AnyBody> {
    if archive == Path::new("-") {
        return Ok(stream(tokio::io::stdin()));
    }
    let file = tokio::fs::File::open(archive)
        .await
        .with_context(|| format!("cannot read {}", archive.display()))?;
    Ok(stream(file))
}

fn stream(reader: impl AsyncRead + Send + Sync + 'static) -> AnyBody {
    use futures_util::TryStreamExt;
    StreamBody::new(ReaderStream::new(reader).map_ok(Frame::data)).boxed()
}

fn empty() -> AnyBody {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed()
}

/// One question to the control plane's door.
async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: AnyBody,
) -> anyhow::Result<T> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot reach the running control plane at {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(body)?;
    let reply = sender
        .send_request(request)
        .await
        .context("the control plane did not answer")?;
    let status = reply.status();
    let bytes = reply.into_body().collect().await?.to_bytes();
    connection.abort();
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!(
            "{}",
            said["message"]
                .as_str()
                .unwrap_or("the control plane refused without a reason")
        );
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// A value as part of a query.
fn percent(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
