//! The platform's own engine of models, as an image in the store of images.
//!
//! To a site an engine is an image like any other: pinned, counted, isolated. It has one name, [`ENGINE_IMAGE`], by
//! which the controller asks for it, and stays whatever else is collected. The engine is a static program, so its image
//! is that one file and a directory for scratch, made here: the same program always makes the same image. An image that an operator put under the
//! name, with an engine for other machines, is left alone.

use std::io;

use anyhow::Context;
use serde_json::json;
use tram_controller::ENGINE_IMAGE;
use tram_image::{Digest, Error, ImageStore, Progress, Reference};

/// Where the engine is in its image.
const PATH: &str = "tram-engine";
/// Whoever it runs as may run it, and nobody changes it.
const MODE: u32 = 0o555;
/// Where it puts what is on its way to a file or from one; a directory.
const SCRATCH: &str = "tmp/";
/// As everywhere: for everybody, each with what is theirs.
const SCRATCH_MODE: u32 = 0o1777;
/// Marks an image that was made here: the next version of `tram` puts its own in its place.
const LABEL: &str = "tramontane.carried";
/// It reads one file and listens above 1024: nobody it is.
const USER: &str = "65534:65534";

/// The engine's image, if there is one: it must stay, for a model that is deployed tomorrow finds no registry that has
/// it.
///
/// # Errors
/// When the store cannot be read.
pub async fn kept(images: &ImageStore) -> Result<Option<Digest>, Error> {
    let reference: Reference = ENGINE_IMAGE.parse()?;
    Ok(images.held(&reference).await?.map(|image| image.manifest_digest))
}

/// Has the image of this engine in the store; nothing to do when it is there, or an operator's own.
///
/// # Errors
/// When it cannot be made or written.
pub async fn ensure(images: &ImageStore, program: &'static [u8]) -> anyhow::Result<()> {
    const DOING: &str = "cannot lay out the engine of models";
    let (digest, archive) = tokio::task::spawn_blocking(|| layout(program, LABEL))
        .await?
        .context(DOING)?;
    let reference: Reference = ENGINE_IMAGE.parse().context(DOING)?;
    if let Some(held) = images.held(&reference).await.context(DOING)?
        && (held.manifest_digest == digest || !held.config.labels.contains_key(LABEL))
    {
        return Ok(());
    }
    let (progress, _watcher) = Progress::channel();
    images
        .import(io::Cursor::new(archive), Some(reference), &progress)
        .await
        .context(DOING)?;
    Ok(())
}

/// An OCI layout with the image, as an archive, and the digest of its manifest.
fn layout(program: &[u8], label: &str) -> io::Result<(Digest, Vec<u8>)> {
    let layer = archive(&[
        (PATH.to_owned(), program, MODE),
        (SCRATCH.to_owned(), b"", SCRATCH_MODE),
    ])?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": [format!("/{PATH}")], "User": USER, "Labels": { label: "yes" } },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    });
    let config = serde_json::to_vec(&config)?;
    let described = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": Digest::of(bytes).to_string(),
            "size": bytes.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", &config),
        "layers": [described("layer.v1.tar", &layer)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let index = json!({ "schemaVersion": 2, "manifests": [described("manifest.v1+json", &manifest)] });
    let index = serde_json::to_vec(&index)?;
    let blob = |bytes: &[u8]| Digest::of(bytes).to_string().replace(':', "/");
    const READABLE: u32 = 0o644;
    let whole = archive(&[
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
            READABLE,
        ),
        ("index.json".to_owned(), &index, READABLE),
        (format!("blobs/{}", blob(&manifest)), &manifest, READABLE),
        (format!("blobs/{}", blob(&config)), &config, READABLE),
        (format!("blobs/{}", blob(&layer)), &layer, READABLE),
    ])?;
    Ok((Digest::of(&manifest), whole))
}

/// A tar file; a name with a slash at its end is a directory's. Its entries carry no time: the same content is always the same archive.
fn archive(files: &[(String, &[u8], u32)]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
        header.set_mode(*mode);
        header.set_entry_type(match path.ends_with('/') {
            true => tar::EntryType::Directory,
            false => tar::EntryType::Regular,
        });
        builder.append_data(&mut header, path, *bytes)?;
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_engine_is_an_image_made_once_and_followed_by_the_next() {
        let root = tempfile::tempdir().unwrap();
        let images = ImageStore::open(root.path(), tram_image::Settings::default()).unwrap();
        assert_eq!(kept(&images).await.unwrap(), None);
        ensure(&images, b"engine one").await.unwrap();
        let first = kept(&images).await.unwrap().unwrap();
        ensure(&images, b"engine one").await.unwrap();
        assert_eq!(kept(&images).await.unwrap(), Some(first));
        let image = images
            .held(&ENGINE_IMAGE.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(image.config.entrypoint, ["/tram-engine"]);
        let program = image
            .layers
            .iter()
            .map(|layer| layer.join(PATH))
            .find(|path| path.exists());
        assert_eq!(std::fs::read(program.unwrap()).unwrap(), b"engine one");
        ensure(&images, b"engine two").await.unwrap();
        assert_ne!(kept(&images).await.unwrap(), Some(first));
    }

    #[tokio::test]
    async fn an_operators_engine_stays() {
        let root = tempfile::tempdir().unwrap();
        let images = ImageStore::open(root.path(), tram_image::Settings::default()).unwrap();
        let (digest, archive) = layout(b"the operator's", "other").unwrap();
        let (progress, _watcher) = Progress::channel();
        images
            .import(
                io::Cursor::new(archive),
                Some(ENGINE_IMAGE.parse().unwrap()),
                &progress,
            )
            .await
            .unwrap();
        ensure(&images, b"engine one").await.unwrap();
        assert_eq!(kept(&images).await.unwrap(), Some(digest));
    }
}
