//! Manifests of artifacts: files that are kept beside images and are none, such as models.
//!
//! The documents are those of images, read by the same rules. What differs is that the configuration may be of any kind,
//! and that layers are files as they are, whose names stand in their annotations.

use std::collections::BTreeMap;

use super::{Descriptor, Document, IndexEntry, ManifestError, check_layers, entries_of};

/// Where the name of a file stands, by whose custom: the OCI's (ORAS, Docker) and ModelPack's.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];

/// What a name of an artifact stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactManifest {
    /// Several of them.
    Index(Vec<IndexEntry>),
    /// Its files.
    Files {
        /// What it says to be, such as `application/vnd.cncf.model.manifest.v1+json`.
        kind: String,
        /// In the manifest's order.
        layers: Vec<ArtifactLayer>,
    },
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactLayer {
    /// Its digest, its size and what it claims to be.
    pub descriptor: Descriptor,
    /// What is written beside it.
    pub annotations: BTreeMap<String, String>,
}

impl ArtifactLayer {
    /// What the file is called, if anything says so.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        NAMES
            .iter()
            .find_map(|name| self.annotations.get(*name))
            .map(String::as_str)
    }
}

/// Reads the manifest of an artifact, or an index. `content_type` is what the transport said, if anything.
///
/// # Errors
/// When it is neither, could be read as either, or has more of something than is taken.
pub fn parse_artifact(bytes: &[u8], content_type: Option<&str>) -> Result<ArtifactManifest, ManifestError> {
    let document = Document::read(bytes, content_type)?;
    if let Some(entries) = document.manifests {
        return Ok(ArtifactManifest::Index(entries_of(entries)?));
    }
    let layers = document.layers.unwrap_or_default();
    check_layers(&layers)?;
    let of_config = document.config.map(|config| config.media_type);
    Ok(ArtifactManifest::Files {
        kind: document.artifact_type.or(of_config).unwrap_or_default(),
        layers: layers
            .into_iter()
            .map(|layer| ArtifactLayer {
                descriptor: layer.descriptor,
                annotations: layer.annotations.unwrap_or_default(),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::OCI_MANIFEST;

    const FILE: &str = r#"{"mediaType":"application/vnd.docker.ai.gguf.v3","size":7,
        "digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#;

    fn manifest(more: &str, layers: &str) -> String {
        let config = FILE.replace("gguf.v3", "model.config.v0.1+json");
        format!(r#"{{"schemaVersion":2,{more}"config":{config},"layers":[{layers}]}}"#)
    }

    #[test]
    fn files_are_read_with_their_names() {
        let named = FILE.replacen('{', r#"{"annotations":{"org.cncf.model.filepath":"a.gguf"},"#, 1);
        let found = parse_artifact(
            manifest("", &format!("{FILE},{named}")).as_bytes(),
            Some(OCI_MANIFEST),
        );
        let Ok(ArtifactManifest::Files { kind, layers }) = found else {
            panic!("{found:?}")
        };
        assert_eq!(kind, "application/vnd.docker.ai.model.config.v0.1+json");
        assert_eq!(layers[0].descriptor.size, 7);
        assert_eq!(
            (layers[0].file_name(), layers[1].file_name()),
            (None, Some("a.gguf"))
        );
        let said = parse_artifact(manifest(r#""artifactType":"x/y","#, "").as_bytes(), None);
        assert!(
            matches!(said, Ok(ArtifactManifest::Files { kind, layers }) if kind == "x/y" && layers.is_empty())
        );
    }

    #[test]
    fn what_could_be_two_things_is_refused() {
        for (more, layers) in [
            (r#""manifests":[],"#, FILE),
            (r#""mediaType":"application/vnd.oci.image.index.v1+json","#, FILE),
        ] {
            assert!(matches!(
                parse_artifact(manifest(more, layers).as_bytes(), None),
                Err(ManifestError::Kind(_))
            ));
        }
        let many = vec![FILE; 300].join(",");
        assert!(matches!(
            parse_artifact(manifest("", &many).as_bytes(), None),
            Err(ManifestError::TooManyLayers(300))
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{FILE}]}}"#);
        assert!(matches!(
            parse_artifact(index.as_bytes(), None),
            Ok(ArtifactManifest::Index(entries)) if entries.len() == 1
        ));
    }
}
