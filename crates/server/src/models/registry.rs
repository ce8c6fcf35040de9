//! A model's file from a registry of images, where it is a layer of an artifact.
//!
//! Mirrors, logins, retries, and going on where a transfer was cut off are those of images (`tram_image::artifact`). What is
//! here: which of an artifact's files is the model, and looking at it before it is whole.

use std::path::PathBuf;

use anyhow::{Context, bail};
use tokio::sync::watch;
use tokio::time::Instant;
use tram_cli::{Printer, Settings};
use tram_image::{Artifact, ArtifactLayer, Artifacts, Credentials, Reference, Timeouts};
use tram_model::{Digest, source::Source};
use tram_site::RegistryCredentials;

use super::pull::{self, LOOK_EVERY_BYTES, NOTE_INTERVAL};
use crate::{
    images::{mib, registries},
    paths::Paths,
};

/// Layers that are a GGUF by what they are said to be: Docker's, Ollama's, and what people push with ORAS.
const TYPES: &[&str] = &[
    "application/vnd.docker.ai.gguf.v3",
    "application/vnd.ollama.image.model",
    "application/gguf",
    "application/x-gguf",
    "application/vnd.gguf",
];
/// ModelPack's weights as they are; in which format, the file's name says.
const WEIGHTS: &str = "application/vnd.cncf.model.weight.v1.raw";
/// What of ModelPack is in an archive starts so as well.
const ARCHIVED: &str = "application/vnd.cncf.model.weight.v1.tar";
const ENDING: &str = ".gguf";

/// The file of the model that `reference` names, whole, and its digest. `login` is of its registry; `wanted` is what it must be, when that is known.
///
/// # Errors
/// With what is wrong, for the user.
pub(super) async fn fetch(
    settings: &Settings,
    paths: &Paths,
    reference: &str,
    login: Option<RegistryCredentials>,
    wanted: Option<&Digest>,
    printer: &Printer,
) -> anyhow::Result<(PathBuf, Digest)> {
    let said = Source::Registry(reference.to_owned()).url("");
    let reference: Reference = reference
        .parse()
        .with_context(|| format!("`{said}` is no source"))?;
    let artifacts = Artifacts::new(registries(settings), Timeouts::default());
    let login = login.map(|login| Credentials::basic(login.username, login.password));
    let found = artifacts.resolve(&reference, login).await.map_err(for_user)?;
    let file = choose(&found.layers).map_err(|why| anyhow::anyhow!("`{said}` {why}"))?;
    let digest = Digest::parse(&file.descriptor.digest.to_string()).map_err(anyhow::Error::msg)?;
    if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
        bail!("`{said}` is a model with the checksum {digest}, and {wanted} was expected");
    }
    let directory = pull::directory(paths)?;
    let (partial, whole, size) = (
        Artifact::partial(&directory, &file.descriptor),
        Artifact::whole(&directory, &file.descriptor),
        file.descriptor.size,
    );
    let have = std::fs::metadata(&partial).map_or(0, |found| found.len());
    pull::check_room(&directory, &said, size.saturating_sub(have), Some(size))?;
    let (sender, mut progress) = watch::channel(0);
    let fetching = found.fetch(&file.descriptor, &directory, sender);
    tokio::pin!(fetching);
    let (mut checked, mut look_at, mut noted_at) = (false, 0, Instant::now());
    loop {
        // The sender is gone with the transfer, whose end is what counts then.
        let have = tokio::select! {
            biased;
            path = &mut fetching => return Ok((path.map_err(for_user)?, digest)),
            Ok(()) = progress.changed() => *progress.borrow_and_update(),
        };
        if have > 0 && !checked && have >= look_at {
            look_at = have.saturating_add(LOOK_EVERY_BYTES);
            checked = match pull::looked_at(&partial, have, Some(size)) {
                // It came to its end meanwhile and has its own name; whoever takes it in looks at it.
                Err(error) if is_missing(&error) => true,
                // It may get its own name meanwhile: what has the first one no more cannot be given the second.
                looked => looked.inspect_err(|_| {
                    pull::forget(&partial);
                    pull::forget(&whole);
                })?,
            };
        }
        if noted_at.elapsed() >= NOTE_INTERVAL {
            noted_at = Instant::now();
            printer.note(format_args!("{:.0} of {:.0} MiB", mib(have), mib(size)));
        }
    }
}

/// Whether a file is not there.
fn is_missing(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// What registries say, in words that fit a model and the operator who fetches it.
fn for_user(error: tram_image::Error) -> anyhow::Error {
    match error {
        tram_image::Error::NotFound { image, registry, .. } => anyhow::anyhow!(
            "there is no `{image}` on `{registry}`: check the name and the tag, and if it is private, the login of the \
             registry in its `credentials.toml`, or name a secret with it (`--secret`)"
        ),
        tram_image::Error::AccessDenied { image, registry, .. } => anyhow::anyhow!(
            "`{registry}` refused access to `{image}`: check the name, and the login of the registry: in its \
             `credentials.toml`, below the setting `registries_dir`, or in a secret (`--secret`)"
        ),
        error if is_of_this_machine(&error) => anyhow::Error::new(error),
        other => anyhow::Error::msg(other.user_message()),
    }
}

/// Whoever fetches a model is the operator, whom the words for users of the cloud send to the operator.
fn is_of_this_machine(error: &tram_image::Error) -> bool {
    match error {
        tram_image::Error::Io { .. }
        | tram_image::Error::Interrupted { .. }
        | tram_image::Error::DiskFull { .. } => true,
        tram_image::Error::Shared(error) => is_of_this_machine(error),
        _ => false,
    }
}

/// The one file that is a model. The error goes on from the artifact's name.
fn choose(layers: &[ArtifactLayer]) -> Result<&ArtifactLayer, String> {
    let is_named = |layer: &&ArtifactLayer| {
        let name = layer.file_name().unwrap_or_default().to_ascii_lowercase();
        name.ends_with(ENDING)
    };
    let kind = |layer: &ArtifactLayer| layer.descriptor.media_type.clone();
    let mut models: Vec<&ArtifactLayer> = layers
        .iter()
        .filter(|layer| TYPES.contains(&kind(layer).as_str()))
        .collect();
    if models.is_empty() {
        // A packer that has no type for it gives the file's name: whatever it is said to be, its first bytes are looked at.
        let plain = |layer: &&ArtifactLayer| !kind(layer).starts_with(ARCHIVED);
        models = layers.iter().filter(plain).filter(is_named).collect();
    }
    if models.is_empty() {
        // A single file of weights without a name may well be one.
        models = layers.iter().filter(|layer| kind(layer) == WEIGHTS).collect();
    }
    match models.as_slice() {
        [only] => Ok(only),
        [] if layers.iter().any(|layer| kind(layer).starts_with(ARCHIVED)) => Err(
            "has its weights in an archive: push the GGUF file as it is (of type \
             `application/vnd.cncf.model.weight.v1.raw`)"
                .to_owned(),
        ),
        [] => {
            let kinds: Vec<String> = layers.iter().map(kind).take(KINDS_SHOWN).collect();
            Err(format!(
                "has no GGUF file; what it has is of type {}",
                if kinds.is_empty() {
                    "nothing".to_owned()
                } else {
                    shown(&kinds.join(", "))
                }
            ))
        }
        several => Err(format!(
            "has {} GGUF files, and a model is one: push each by itself, and the parts of one joined with \
             `llama-gguf-split --merge`",
            several.len()
        )),
    }
}

/// Types of layers that a message names.
const KINDS_SHOWN: usize = 3;
/// Longest of them together, in characters: they are strangers' text.
const SHOWN_CHARACTERS: usize = 200;

fn shown(text: &str) -> String {
    let plain = text.chars().filter(|character| !character.is_control());
    plain.take(SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(of: &[(&str, &str)]) -> Vec<ArtifactLayer> {
        of.iter()
            .map(|(kind, name)| {
                let name = Some(*name).filter(|name| !name.is_empty());
                let name = name.map(|name| ("org.opencontainers.image.title".to_owned(), name.to_owned()));
                let descriptor = serde_json::json!({
                    "mediaType": kind, "size": 1, "digest": format!("sha256:{}", "0".repeat(64)),
                });
                ArtifactLayer {
                    descriptor: serde_json::from_value(descriptor).unwrap(),
                    annotations: name.into_iter().collect(),
                }
            })
            .collect()
    }

    #[test]
    fn every_packers_model_is_found() {
        const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
        for (of, at) in [
            (
                &[("application/vnd.docker.ai.license", ""), (TYPES[0], "")][..],
                1,
            ),
            (
                &[(TYPES[1], ""), ("application/vnd.ollama.image.template", "")],
                0,
            ),
            (&[("text/markdown", "README.md"), (TAR, "Tiny.Q4_0.GGUF")], 1),
            (&[(WEIGHTS, "model.gguf"), (WEIGHTS, "tokenizer.model")], 0),
            (&[("application/vnd.cncf.model.doc.v1.tar", ""), (WEIGHTS, "")], 1),
            (&[("application/octet-stream", "a.gguf"), (TYPES[2], "b.gguf")], 1),
        ] {
            let layers = layers(of);
            assert!(
                std::ptr::eq(choose(&layers).unwrap(), &raw const layers[at]),
                "{of:?}"
            );
        }
    }

    #[test]
    fn what_is_no_model_is_said() {
        for (of, words) in [
            (&[][..], "of type nothing"),
            (
                &[("application/vnd.oci.image.layer.v1.tar+gzip", "")],
                "layer.v1.tar+gzip",
            ),
            (&[(TYPES[0], ""), (TYPES[0], "")], "has 2 GGUF files"),
            (
                &[("application/vnd.cncf.model.weight.v1.tar+gzip", "a.gguf")],
                "in an archive",
            ),
        ] {
            let said = choose(&layers(of)).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }
}
