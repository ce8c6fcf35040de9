//! A model as the source: the engine's image, with the model shown to it, and the words it is started with.
//!
//! An engine is an image like any other to a site. The platform's own is in the store of images under
//! [`ENGINE_IMAGE`], where the composition root puts it; of the others the definition names the image. What is known of
//! each beside its words is in `tram_types::engine`.

use tram_site::{
    AdapterSpec, ImageSpec, RegistryCredentials,
    spec::{DRAFT_PATH, MODEL_PATH, adapter_path},
};
use tram_types::{
    DeploymentId,
    catalog::InstanceType,
    definition::{DeploymentDefinition, ModelSource},
    effective::DEFAULT_WEB_PORT,
    engine::Engine,
};

/// The name of the image with the platform's own engine.
pub const ENGINE_IMAGE: &str = "tramontane.internal/engine";

/// Thousandths of a processor in a whole one.
const MILLIS_OF_ONE: u32 = 1000;
/// Context of an engine that would else take memory for all that the model was trained for; the default of our own.
const CONTEXT_LENGTH: i64 = 8192;

/// What validation has let through is known; what was stored by a newer version is started as it is.
fn engine(source: &ModelSource) -> Engine {
    Engine::named(&source.engine).unwrap_or(Engine::OpenAi)
}

/// A model that the engine's image or a volume holds.
fn is_path(source: &ModelSource) -> bool {
    source.source.starts_with('/')
}

pub(crate) fn image(
    source: &ModelSource,
    credentials: Option<RegistryCredentials>,
    deployment: DeploymentId,
) -> ImageSpec {
    let reference = match engine(source) {
        Engine::Tram => ENGINE_IMAGE.to_owned(),
        _ => source.image.trim().to_owned(),
    };
    ImageSpec {
        reference,
        credentials,
        model: Some(source.source.clone()).filter(|_| !is_path(source)),
        adapters: source
            .adapters
            .iter()
            .map(|adapter| AdapterSpec {
                name: adapter.name.clone(),
                source: adapter.source.clone(),
            })
            .collect(),
        draft: Some(source.draft.clone()).filter(|draft| !draft.is_empty()),
        // A user's own file is theirs to choose.
        keeps: engine(source) == Engine::Tram && !source.args.iter().any(|word| is_keep(word)),
        deployment,
    }
}

/// Whether a word is `--keep`, with its value or without.
fn is_keep(word: &str) -> bool {
    word.split('=').next() == Some("--keep")
}

/// What is started, where the images of an engine do not agree on it; empty: what the image says.
pub(super) fn entrypoint(source: &ModelSource) -> Vec<String> {
    let words: &[&str] = match engine(source) {
        Engine::Tram | Engine::LlamaServer | Engine::OpenAi => &[],
        Engine::Vllm => &["vllm", "serve"],
        Engine::Sglang => &["python3", "-m", "sglang.launch_server"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What the engine is told. It answers to the service's name; ours to any other name that a request gives as well.
pub(super) fn args(
    source: &ModelSource,
    definition: &DeploymentDefinition,
    service_name: &str,
    kind: &InstanceType,
) -> Vec<String> {
    let port = definition.main_port().unwrap_or(DEFAULT_WEB_PORT).to_string();
    let model = match is_path(source) {
        true => source.source.as_str(),
        false => MODEL_PATH,
    };
    // More threads than processors wait for each other at every layer.
    let threads = kind.cpu_millis.div_ceil(MILLIS_OF_ONE).to_string();
    let listen = format!("0.0.0.0:{port}");
    let given = |value: i64| Some(value).filter(|value| *value > 0);
    let (context, parallel) = (given(source.context_length), given(source.parallel));
    let context_or_usual = context.unwrap_or(CONTEXT_LENGTH).to_string();
    let words: &[&str] = match engine(source) {
        Engine::Tram => &[
            "serve",
            "--model",
            model,
            "--listen",
            &listen,
            "--name",
            service_name,
            "--threads",
            &threads,
        ],
        // One cache for all answers, as the fit was reckoned with.
        Engine::LlamaServer => &[
            "--model",
            model,
            "--host",
            "0.0.0.0",
            "--port",
            &port,
            "--alias",
            service_name,
            "--threads",
            &threads,
            "--metrics",
            "--kv-unified",
            "--ctx-size",
            &context_or_usual,
        ],
        Engine::Vllm => &[
            model,
            "--host",
            "0.0.0.0",
            "--port",
            &port,
            "--served-model-name",
            service_name,
            "--enable-prompt-tokens-details",
        ],
        Engine::Sglang => &[
            "--model-path",
            model,
            "--host",
            "0.0.0.0",
            "--port",
            &port,
            "--served-model-name",
            service_name,
            "--enable-metrics",
            "--enable-cache-report",
        ],
        Engine::OpenAi => &[],
    };
    let (context_flag, parallel_flag) = match engine(source) {
        Engine::Tram => ("--context-length", "--parallel"),
        Engine::LlamaServer => ("", "--parallel"),
        Engine::Vllm => ("--max-model-len", "--max-num-seqs"),
        Engine::Sglang => ("--context-length", "--max-running-requests"),
        Engine::OpenAi => ("", ""),
    };
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    for (flag, value) in [(context_flag, context), (parallel_flag, parallel)] {
        if let (false, Some(value)) = (flag.is_empty(), value) {
            words.extend([flag.to_owned(), value.to_string()]);
        }
    }
    for adapter in &source.adapters {
        let path = adapter_path(&adapter.name);
        words.extend(["--adapter".to_owned(), format!("{}={path}", adapter.name)]);
    }
    if !source.draft.is_empty() {
        words.extend(["--draft".to_owned(), DRAFT_PATH.to_owned()]);
    }
    words.extend(source.args.iter().cloned());
    words
}

#[cfg(test)]
mod tests {
    use tram_types::catalog::unlimited;

    use super::*;

    fn started(model: &str, kind: &str) -> (String, ImageSpec) {
        let definition: DeploymentDefinition = serde_json::from_str(&format!(
            r#"{{"type":"WEB","ports":[{{"port":9000,"protocol":"http"}}],"model":{model}}}"#
        ))
        .unwrap();
        let source = definition.model.clone().unwrap();
        let catalog = unlimited();
        let kind = catalog.instance_type(kind).unwrap();
        let mut words = entrypoint(&source);
        words.extend(args(&source, &definition, "chat", kind));
        (words.join(" "), image(&source, None, DeploymentId::random()))
    }

    #[test]
    fn our_engine_is_told_what_the_definition_says() {
        let (words, spec) = started(r#"{"source":"smollm2","context_length":2048}"#, "medium");
        assert_eq!(
            words,
            "serve --model /.tramontane/model.gguf --listen 0.0.0.0:9000 --name chat --threads 2 --context-length 2048"
        );
        assert_eq!(
            (spec.reference.as_str(), spec.model.as_deref()),
            (ENGINE_IMAGE, Some("smollm2"))
        );
        assert!(spec.keeps, "a site may keep what it computes");
        let own = started(r#"{"source":"smollm2","args":["--keep=/data/kept"]}"#, "nano").1;
        assert!(!own.keeps, "the user does");
        let other = started(
            r#"{"source":"smollm2","engine":"llama-server","image":"x/y:1"}"#,
            "nano",
        )
        .1;
        assert!(!other.keeps, "it would not know the words");
        let (words, spec) = started(
            r#"{"source":"smollm2","adapters":[{"name":"tone","source":"polite"}]}"#,
            "medium",
        );
        assert!(
            words.ends_with(" --adapter tone=/.tramontane/adapters/tone.gguf"),
            "{words}"
        );
        assert_eq!((spec.adapters[0].source.as_str(), spec.draft), ("polite", None));
        let (words, spec) = started(r#"{"source":"big","draft":"small"}"#, "medium");
        assert!(words.ends_with(" --draft /.tramontane/draft.gguf"), "{words}");
        assert_eq!(spec.draft.as_deref(), Some("small"));
        assert!(
            started(r#"{"source":"smollm2"}"#, "nano")
                .0
                .contains("--threads 1")
        );
    }

    #[test]
    fn others_are_told_the_same_in_their_own_words() {
        let (words, spec) = started(
            r#"{"source":"smollm2","engine":"llama-server","image":"x/y:1","parallel":2,"args":["--jinja"]}"#,
            "medium",
        );
        assert_eq!(
            words,
            "--model /.tramontane/model.gguf --host 0.0.0.0 --port 9000 --alias chat --threads 2 --metrics --kv-unified \
             --ctx-size 8192 --parallel 2 --jinja"
        );
        assert_eq!(
            (spec.reference.as_str(), spec.model.as_deref()),
            ("x/y:1", Some("smollm2"))
        );
        let (words, spec) = started(
            r#"{"source":"/models/a","engine":"vllm","image":"v","context_length":512,"parallel":3}"#,
            "medium",
        );
        assert_eq!(
            words,
            "vllm serve /models/a --host 0.0.0.0 --port 9000 --served-model-name chat \
             --enable-prompt-tokens-details --max-model-len 512 --max-num-seqs 3"
        );
        assert_eq!((spec.reference.as_str(), spec.model), ("v", None));
        let (words, _) = started(r#"{"source":"m","engine":"sglang","image":"s"}"#, "medium");
        assert!(words.starts_with("python3 -m sglang.launch_server --model-path /.tramontane/model.gguf "));
        let (words, _) = started(
            r#"{"source":"m","engine":"openai","image":"s","context_length":512,"args":["run"]}"#,
            "medium",
        );
        assert_eq!(words, "run");
    }
}
