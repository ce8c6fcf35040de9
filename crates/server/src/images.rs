//! `tram images`: through the running control plane when there is one, else on the store itself.

use std::path::Path;

use anyhow::Context;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, body::Frame};
use serde_json::json;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use tram_cli::{ImagesAction, Printer, Settings};
use tram_image::{Aliases, ImageStore};

use crate::{
    admin::{self, ImageRow, Pruned},
    collector,
    door::{AnyBody, ask, empty},
    paths::Paths,
};

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
                let mut in_use = tram_site_local::images_in_use_at(&paths.site())
                    .context("cannot tell which images are needed, so none was removed")?;
                in_use.extend(crate::engine_image::kept(&images).await.map_err(for_user)?);
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
    let wanted = tram_image::Settings {
        registries: registries(settings),
        aliases: aliases(settings)?,
        fallbacks: fallbacks(settings)?,
        ..tram_image::Settings::default()
    };
    if let Err((room, source)) = paths.ensure() {
        return Err(source).with_context(|| format!("cannot make {}: are you root?", room.display()));
    }
    ImageStore::open(paths.images(), wanted).map_err(for_user)
}

/// How registries are reached, and who they are told asks.
pub(crate) fn registries(settings: &Settings) -> tram_image::RegistryConfig {
    if settings.registries_dir.as_os_str().is_empty() {
        tram_image::RegistryConfig::default()
    } else {
        tram_image::RegistryConfig::from_directory(&settings.registries_dir)
    }
}

/// The names that are taken from elsewhere.
///
/// # Errors
/// When one is no name of an image.
pub fn aliases(settings: &Settings) -> anyhow::Result<Aliases> {
    Aliases::new(&settings.image_aliases.0)
        .context("the setting `image_aliases` has a name that is none of an image")
}

/// The names that another image stands in for.
///
/// # Errors
/// When one is no name of an image.
pub fn fallbacks(settings: &Settings) -> anyhow::Result<Aliases> {
    Aliases::new(&settings.image_fallbacks.0)
        .context("the setting `image_fallbacks` has a name that is none of an image")
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
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / tram_types::units::MIB as f64
}

pub(crate) fn archive_reader(archive: &Path) -> anyhow::Result<Box<dyn std::io::Read + Send>> {
    if archive == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = std::fs::File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    Ok(Box::new(file))
}

pub(crate) async fn archive_body(archive: &Path) -> anyhow::Result<AnyBody> {
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

/// A value as part of a query.
pub(crate) fn percent(value: &str) -> String {
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

#[cfg(test)]
mod tests {
    use tram_cli::settings;

    use super::*;

    fn with(name: &str, target: &str) -> Settings {
        Settings {
            image_aliases: settings::Aliases([(name.to_owned(), target.to_owned())].into()),
            ..Settings::default()
        }
    }

    #[test]
    fn the_operators_names_reach_the_store_of_images() {
        let aliases = aliases(&with("koyeb/sandbox", "registry.example.org/sandbox")).unwrap();
        assert_eq!(
            aliases.apply(&"koyeb/sandbox:1".parse().unwrap()).to_string(),
            "registry.example.org/sandbox:1"
        );
        let refused = super::aliases(&with("https://koyeb/sandbox", "x")).unwrap_err();
        assert!(refused.to_string().contains("image_aliases"), "{refused}");
    }
}
