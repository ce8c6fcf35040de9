//! A model as the source: the engine's image, with the model shown to it, and the words it is started with.
//!
//! An engine is an image like any other to a site. The platform's own is in the store of images under
//! [`ENGINE_IMAGE`], where the composition root puts it; its entrypoint is the engine, which takes these words.

use tram_site::{ImageSpec, spec::MODEL_PATH};
use tram_types::{
    DeploymentId,
    catalog::InstanceType,
    definition::{DeploymentDefinition, ModelSource},
    effective::DEFAULT_WEB_PORT,
};

/// The name of the image with the platform's own engine.
pub const ENGINE_IMAGE: &str = "tramontane.internal/engine";

/// Thousandths of a processor in a whole one.
const MILLIS_OF_ONE: u32 = 1000;

pub(super) fn image(source: &ModelSource, deployment: DeploymentId) -> ImageSpec {
    ImageSpec {
        reference: ENGINE_IMAGE.to_owned(),
        credentials: None,
        model: Some(source.source.clone()),
        deployment,
    }
}

/// What the engine is told. It answers to the service's name, and to any other name that a request gives.
pub(super) fn args(
    source: &ModelSource,
    definition: &DeploymentDefinition,
    service_name: &str,
    kind: &InstanceType,
) -> Vec<String> {
    let port = definition.main_port().unwrap_or(DEFAULT_WEB_PORT);
    let mut words = vec![
        "serve".to_owned(),
        "--model".to_owned(),
        MODEL_PATH.to_owned(),
        "--listen".to_owned(),
        format!("0.0.0.0:{port}"),
        "--name".to_owned(),
        service_name.to_owned(),
        // More threads than processors wait for each other at every layer.
        "--threads".to_owned(),
        kind.cpu_millis.div_ceil(MILLIS_OF_ONE).to_string(),
    ];
    for (flag, value) in [
        ("--context-length", source.context_length),
        ("--parallel", source.parallel),
    ] {
        if value > 0 {
            words.extend([flag.to_owned(), value.to_string()]);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use tram_types::catalog::unlimited;

    use super::*;

    #[test]
    fn the_engine_is_told_what_the_definition_says() {
        let definition: DeploymentDefinition = serde_json::from_str(
            r#"{"type":"WEB","ports":[{"port":9000,"protocol":"http"}],
                "model":{"source":"smollm2","context_length":2048}}"#,
        )
        .unwrap();
        let source = definition.model.clone().unwrap();
        let catalog = unlimited();
        let words = |kind: &str| {
            let kind = catalog.instance_type(kind).unwrap();
            args(&source, &definition, "chat", kind).join(" ")
        };
        assert_eq!(
            words("medium"),
            "serve --model /.tramontane/model.gguf --listen 0.0.0.0:9000 --name chat --threads 2 --context-length 2048"
        );
        assert!(words("nano").contains("--threads 1 "));
        let spec = image(&source, DeploymentId::random());
        assert_eq!(
            (spec.reference.as_str(), spec.model.as_deref()),
            (ENGINE_IMAGE, Some("smollm2"))
        );
    }
}
