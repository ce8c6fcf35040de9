//! `tram models deploy MODEL`: from a model of the server to a URL that answers questions.

use serde_json::Value;
use tram_types::{
    definition::{DeploymentDefinition, DeploymentPort, DeploymentRoute, ModelAdapter, ModelSource},
    status::DefinitionType,
};

use super::list;
use crate::{
    client::Client,
    commands::deploy::{self, Load, definition, wait},
    error::Error,
    session::Session,
    view::{list as items, number, text},
};

/// The port of the engine; what a web service has when nothing is said.
const PORT: i64 = 8000;

/// What `--draft` says to have none any more.
const NO_DRAFT: &str = "none";

/// Arguments of `models deploy`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The model, as `tram models list` shows it; or, with an engine's image of your own, an absolute path in it
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Name of the service; without it the model's
    #[arg(long, short, value_name = "NAME")]
    pub name: Option<String>,
    /// Name of its app; without it the service's name
    #[arg(long, value_name = "APP")]
    pub app: Option<String>,
    /// A change of the model's weights (LoRA) and how requests ask for it: NAME=SOURCE, where SOURCE is shown by
    /// `tram models list`; can be given several times
    #[arg(long = "adapter", value_name = "NAME=SOURCE", value_parser = adapter)]
    pub adapters: Vec<(String, String)>,
    /// A smaller model of the same vocabulary that guesses what this one says next, as `tram models list` shows it: answers
    /// are the same and may come sooner; `none` takes away what was given before
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,
    /// Tokens that a prompt and its answer have together, at most; 8192 when nothing is said, or what the model was
    /// trained for
    #[arg(long, value_name = "TOKENS")]
    pub context_length: Option<u32>,
    /// Answers that one instance writes at once; more wait
    #[arg(long, value_name = "N")]
    pub parallel: Option<u16>,
    /// What serves it: one of `tram models engines`; the platform's own when nothing is said
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// The image with that engine
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// What else the engine is told; can be given several times
    #[arg(long = "engine-arg", value_name = "WORD", allow_hyphen_values = true)]
    pub engine_args: Vec<String>,
    /// What an engine of type `openai` calls its model; the service's name when nothing is said
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// Size of an instance; the smallest that holds the model when nothing is said
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// Where to run it; without it the first region of the server; several can be given
    #[arg(long, value_name = "REGION")]
    pub region: Vec<String>,
    /// How many instances, and when none.
    #[command(flatten)]
    pub load: Load,
    /// How to wait.
    #[command(flatten)]
    pub waiting: wait::Waiting,
}

/// Reads `NAME=SOURCE`.
fn adapter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, source)) if !name.is_empty() && !source.is_empty() => {
            Ok((name.to_owned(), source.to_owned()))
        }
        _ => Err("give a name and a file: NAME=SOURCE".to_owned()),
    }
}

pub(super) async fn run(session: Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let name = arguments
        .name
        .clone()
        .unwrap_or_else(|| service_name(&arguments.model));
    // What an image of one's own holds is not known here.
    let needed_bytes = match arguments.model.starts_with('/') {
        true => None,
        false => {
            let mut bytes = number(&list::find(&client, &arguments.model).await?, "needed_bytes");
            for (_, source) in &arguments.adapters {
                bytes = bytes.saturating_add(number(&list::find(&client, source).await?, "size_bytes"));
            }
            if let Some(draft) = arguments.draft.as_deref().filter(|draft| *draft != NO_DRAFT) {
                // Somewhat more than it takes beside a model: one engine serves both.
                bytes = bytes.saturating_add(number(&list::find(&client, draft).await?, "needed_bytes"));
            }
            Some(bytes)
        }
    };
    let fitting = match (&arguments.instance_type, needed_bytes) {
        (None, Some(bytes)) => smallest(&client, bytes).await?,
        _ => None,
    };
    let place = deploy::Place {
        app: arguments.app.clone().unwrap_or_else(|| name.clone()),
        name: name.clone(),
    };
    let build = |before| build(before, &arguments, &name, fitting.as_deref());
    deploy::apply(&session, &client, place, &arguments.waiting, build).await
}

/// The definition that `arguments` ask for: `before` with their changes, or a new one.
fn build(
    before: Option<DeploymentDefinition>,
    arguments: &Arguments,
    name: &str,
    fitting: Option<&str>,
) -> Result<DeploymentDefinition, Error> {
    let mut definition = before.unwrap_or_else(|| DeploymentDefinition {
        r#type: DefinitionType::Web,
        ports: vec![DeploymentPort {
            port: PORT,
            protocol: "http".to_owned(),
        }],
        routes: vec![DeploymentRoute {
            port: PORT,
            path: "/".to_owned(),
            security_policies: None,
        }],
        ..DeploymentDefinition::default()
    });
    name.clone_into(&mut definition.name);
    (
        definition.docker,
        definition.git,
        definition.archive,
        definition.database,
    ) = (None, None, None, None);
    let model = definition.model.get_or_insert_with(ModelSource::default);
    model.source.clone_from(&arguments.model);
    for (member, given) in [
        (&mut model.engine, &arguments.engine),
        (&mut model.image, &arguments.image),
        (&mut model.served_name, &arguments.served_name),
    ] {
        if let Some(given) = given {
            member.clone_from(given);
        }
    }
    if !arguments.adapters.is_empty() {
        let adapter = |(name, source): &(String, String)| ModelAdapter {
            name: name.clone(),
            source: source.clone(),
        };
        model.adapters = arguments.adapters.iter().map(adapter).collect();
    }
    if let Some(draft) = &arguments.draft {
        model.draft = Some(draft.clone())
            .filter(|draft| draft != NO_DRAFT)
            .unwrap_or_default();
    }
    if !arguments.engine_args.is_empty() {
        model.args.clone_from(&arguments.engine_args);
    }
    if let Some(tokens) = arguments.context_length {
        model.context_length = tokens.into();
    }
    if let Some(parallel) = arguments.parallel {
        model.parallel = parallel.into();
    }
    if let Some(kind) = &arguments.instance_type {
        definition.instance_types = vec![definition::instance_type(kind)];
    } else if let (true, Some(kind)) = (definition.instance_types.is_empty(), fitting) {
        definition.instance_types = vec![definition::instance_type(kind)];
    }
    if !arguments.region.is_empty() {
        definition.regions.clone_from(&arguments.region);
    }
    definition::scaling(&mut definition, &arguments.load)?;
    Ok(definition)
}

/// The smallest instance type of the server with so much memory; `None` when it has none, and then the server says what
/// is missing.
async fn smallest(client: &Client, bytes: i64) -> Result<Option<String>, Error> {
    let reply = client.get("/v1/catalog/instances", &[("limit", "100")]).await?;
    let fitting = items(&reply, "instances")
        .iter()
        // The engine that `tram` carries has no use for GPUs.
        .filter(|kind| {
            text(kind, "status") == "AVAILABLE" && text(kind, "type") != "gpu" && memory_bytes(kind) >= bytes
        })
        // Those that share a processor come last: a model computes all the time it is asked.
        .min_by_key(|kind| (text(kind, "type") != "standard", memory_bytes(kind)));
    Ok(fitting.map(|kind| text(kind, "id").to_owned()))
}

/// As the catalog writes it: `512MB` or `2GB`, in powers of two; what is beyond the point is left out.
fn memory_bytes(kind: &Value) -> i64 {
    let written = text(kind, "memory");
    let split = written
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(written.len());
    let digits = written.get(..split).unwrap_or_default();
    let unit = written.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let shift = match unit {
        "MB" => 20,
        "GB" => 30,
        _ => 0,
    };
    digits.parse::<i64>().unwrap_or(0).saturating_mul(1 << shift)
}

/// A name that a service can have: the model's, with dashes for what a service's name has not.
fn service_name(model: &str) -> String {
    let dashed: String = model
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    dashed.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn built(before: Option<DeploymentDefinition>, line: &str) -> DeploymentDefinition {
        let words = std::iter::once("deploy").chain(line.split_whitespace());
        let line: Line = clap::Parser::try_parse_from(words).unwrap();
        build(before, &line.arguments, "chat", Some("small")).unwrap()
    }

    #[test]
    fn a_model_gets_a_service_and_keeps_what_is_not_said_anew() {
        let first = built(None, "smollm2 --context-length 2048 --sleep-after 5m");
        assert_eq!(first.model.as_ref().unwrap().context_length, 2048);
        assert_eq!((first.scalings[0].min, first.scalings[0].max), (0, 1));
        assert_eq!(first.instance_types[0].r#type, "small");
        assert_eq!((first.ports[0].port, first.routes[0].path.as_str()), (PORT, "/"));
        let second = built(Some(first.clone()), "other --parallel 2");
        let model = second.model.clone().unwrap();
        assert_eq!(
            (model.source.as_str(), model.parallel, model.context_length),
            ("other", 2, 2048)
        );
        assert_eq!(second.scalings, first.scalings);
        let foreign = built(
            Some(second.clone()),
            "other --engine llama-server --image x --engine-arg --jinja",
        );
        let model = foreign.model.unwrap();
        assert_eq!(
            (model.engine.as_str(), model.image.as_str(), model.args),
            ("llama-server", "x", vec!["--jinja".to_owned()])
        );
        let adapted = built(
            Some(second.clone()),
            "other --adapter tone=polite --adapter b=hf://x/y/z.gguf",
        );
        let adapters = adapted.model.unwrap().adapters;
        assert_eq!(
            (adapters[0].name.as_str(), adapters[1].source.as_str()),
            ("tone", "hf://x/y/z.gguf")
        );
        let drafted = built(Some(second.clone()), "other --draft small");
        assert_eq!(drafted.model.as_ref().unwrap().draft, "small");
        let kept = built(Some(drafted), "other --parallel 3");
        assert_eq!(kept.model.as_ref().unwrap().draft, "small");
        assert_eq!(built(Some(kept), "other --draft none").model.unwrap().draft, "");
        let sized = built(Some(second), "other --instance-type large");
        assert_eq!(sized.instance_types[0].r#type, "large");
    }

    #[test]
    fn names_and_sizes_are_read() {
        assert_eq!(service_name("SmolLM2.Q4_1"), "smollm2-q4-1");
        assert_eq!(memory_bytes(&json!({"memory": "512MB"})), 512 << 20);
        assert_eq!(memory_bytes(&json!({"memory": "2GB"})), 2 << 30);
        assert_eq!(memory_bytes(&json!({})), 0);
    }
}
