//! Rules of a model as the source.

use super::Check;
use crate::{
    definition::ModelSource, engine::Engine, names::check_secret_name, status::DefinitionType, units::amount,
};

/// Longest source, in bytes: places on the web are shorter.
const SOURCE_MAX_BYTES: usize = 1024;
/// Most tokens of context: ten times what any model was trained for, and stops a number that would overflow an engine.
pub const CONTEXT_LENGTH_MAX: i64 = 10_485_760;
/// Fewest tokens of context that an engine takes: with less there is no room for a question.
pub const CONTEXT_LENGTH_MIN: i64 = 16;
/// Most answers at once of one instance: beyond, a step of the engine takes longer than a reader waits.
pub const PARALLEL_MAX: i64 = 128;

/// Most adapters of one model: each is in the memory of every instance all the time.
const ADAPTERS_MAX: usize = 32;

/// What validation must know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// Memory that an instance needs to serve it as the definition asks, its adapters and its draft included.
    pub needed_bytes: u64,
    /// Whether it is a change of another model's weights.
    pub is_adapter: bool,
    /// What is known of the adapters that the definition gives it, in their order.
    pub adapters: Vec<KnownAdapter>,
    /// What is known of the draft that the definition gives it; fits, where there is none.
    pub draft: KnownDraft,
    /// Tokens it was trained to look back on; 0 when that is not known.
    pub context_length: u64,
}

/// What validation must know of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownAdapter {
    /// It may be one of the model; whether its weights fit, the engine sees.
    Fits,
    /// There is no such file.
    Missing,
    /// It is a whole model.
    Model,
    /// It is made for models of another kind, which is named.
    Other(String),
}

/// What validation must know of a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownDraft {
    /// It may be one of the model; whether its vocabulary is the model's, the engine sees.
    Fits,
    /// There is no such file.
    Missing,
    /// It is a change of a model's weights.
    Adapter,
    /// It, or the model, makes vectors of texts and guesses nothing.
    Embedding,
}

impl Check<'_> {
    pub(super) fn model(&mut self) {
        let definition = self.definition;
        let Some(model) = &definition.model else { return };
        if definition.r#type != DefinitionType::Web {
            self.wrong("type", "a model is served by a service of type WEB");
        }
        self.engine(model);
        self.adapters(model);
        self.draft(model);
        let lengths = CONTEXT_LENGTH_MIN..=CONTEXT_LENGTH_MAX;
        if model.context_length != 0 && !lengths.contains(&model.context_length) {
            self.wrong(
                "model.context_length",
                format!(
                    "must be from {CONTEXT_LENGTH_MIN} to {CONTEXT_LENGTH_MAX} tokens, or 0 for the usual"
                ),
            );
        }
        if !(0..=PARALLEL_MAX).contains(&model.parallel) {
            self.wrong(
                "model.parallel",
                format!("must be from 1 to {PARALLEL_MAX}, or 0 for the usual"),
            );
        }
        if model.source.trim().is_empty() || model.source.len() > SOURCE_MAX_BYTES {
            self.wrong(
                "model.source",
                "must name a model of this installation, such as `smollm2`; `tram models list` shows them",
            );
            return;
        }
        if model.source.starts_with('/') {
            if Engine::named(&model.engine) == Some(Engine::Tram) {
                self.wrong(
                    "model.source",
                    "a path is one in the engine's own image, and `tram-engine` has no models in its: name a model of \
                     this installation; `tram models list` shows them",
                );
            }
            // What it needs is not known before it is started.
            return;
        }
        let Some(known) = (self.context.model)(model) else {
            self.wrong(
                "model.source",
                format!(
                    "there is no model `{}` on this installation: take it in with `tram models import` or \
                     `tram models pull` first",
                    shown(&model.source)
                ),
            );
            return;
        };
        if known.is_adapter {
            self.wrong(
                "model.source",
                "is an adapter and no whole model: name the model it is made for, and this one among its `adapters`",
            );
        }
        for (index, (adapter, what)) in model.adapters.iter().zip(&known.adapters).enumerate() {
            let source = shown(&adapter.source);
            let message = match what {
                KnownAdapter::Fits => continue,
                KnownAdapter::Missing => format!(
                    "there is no adapter `{source}` on this installation: take it in with `tram models import` or \
                     `tram models pull` first"
                ),
                KnownAdapter::Model => format!("`{source}` is a whole model and no adapter"),
                KnownAdapter::Other(kind) => {
                    format!(
                        "`{source}` is an adapter of models of the kind `{}`, which this is not",
                        shown(kind)
                    )
                }
            };
            self.wrong(format!("model.adapters.{index}.source"), message);
        }
        let draft = shown(&model.draft);
        match known.draft {
            KnownDraft::Fits => {}
            KnownDraft::Missing => self.wrong(
                "model.draft",
                format!(
                    "there is no model `{draft}` on this installation: take it in with `tram models import` or \
                     `tram models pull` first"
                ),
            ),
            KnownDraft::Adapter => self.wrong(
                "model.draft",
                format!("`{draft}` is an adapter and no whole model: name a smaller model of the same family"),
            ),
            KnownDraft::Embedding => self.wrong(
                "model.draft",
                "models that make embeddings write nothing that could be guessed: leave it empty",
            ),
        }
        let asked = u64::try_from(model.context_length).unwrap_or(0);
        if known.context_length > 0 && asked > known.context_length {
            self.wrong(
                "model.context_length",
                format!(
                    "the model was trained for {} tokens, not {asked}",
                    known.context_length
                ),
            );
        }
        self.model_fits(&known);
    }

    /// The names of its adapters.
    fn adapters(&mut self, model: &ModelSource) {
        let engine = Engine::named(&model.engine).unwrap_or(Engine::OpenAi).facts();
        if !model.adapters.is_empty() && !engine.takes_adapters {
            let message = format!("`{}` takes no adapters here: leave them out", engine.name);
            self.wrong("model.adapters", message);
            return;
        }
        if model.adapters.len() > ADAPTERS_MAX {
            self.wrong("model.adapters", format!("may be at most {ADAPTERS_MAX}"));
            return;
        }
        let mut names = std::collections::BTreeSet::new();
        for (index, adapter) in model.adapters.iter().enumerate() {
            if let Err(rule) = check_secret_name(&adapter.name) {
                self.wrong(format!("model.adapters.{index}.name"), rule);
            } else if !names.insert(adapter.name.as_str()) {
                self.wrong(format!("model.adapters.{index}.name"), "is given twice");
            }
        }
    }

    /// Whether the engine takes a draft.
    fn draft(&mut self, model: &ModelSource) {
        let engine = Engine::named(&model.engine).unwrap_or(Engine::OpenAi).facts();
        if !model.draft.is_empty() && !engine.takes_drafts {
            let message = format!(
                "`{}` takes no draft here: leave it empty, and give the engine one of its own image in `args`",
                engine.name
            );
            self.wrong("model.draft", message);
        }
        if model.draft.len() > SOURCE_MAX_BYTES {
            self.wrong(
                "model.draft",
                format!("may have at most {SOURCE_MAX_BYTES} bytes"),
            );
        }
    }

    /// Which engine, and out of which image.
    fn engine(&mut self, model: &ModelSource) {
        let Some(engine) = Engine::named(&model.engine) else {
            let message = format!(
                "there is no engine `{}` here: use one of {}",
                shown(&model.engine),
                Engine::names()
            );
            self.wrong("model.engine", message);
            return;
        };
        let facts = engine.facts();
        match (facts.image_example, model.image.trim()) {
            ("", "") => {}
            ("", _) => self.wrong(
                "model.image",
                format!("`{}` is carried by the platform: leave `image` empty", facts.name),
            ),
            (example, "") => self.wrong(
                "model.image",
                format!("must name an image with `{}`, such as `{example}`", facts.name),
            ),
            _ => {}
        }
        self.registry_secret("model.image_registry_secret", &model.image_registry_secret);
        self.bounded("model.args", model.args.len());
        if !model.served_name.is_empty() && engine != Engine::OpenAi {
            let message = format!("`{}` is told what to call its model: leave it empty", facts.name);
            self.wrong("model.served_name", message);
        }
        if model.served_name.len() > SOURCE_MAX_BYTES {
            self.wrong(
                "model.served_name",
                format!("may have at most {SOURCE_MAX_BYTES} bytes"),
            );
        }
    }

    /// Every size of instance that the definition asks for must hold the model.
    fn model_fits(&mut self, known: &KnownModel) {
        let definition = self.definition;
        let engine = definition.model.as_ref();
        let engine = engine
            .and_then(|model| Engine::named(&model.engine))
            .unwrap_or(Engine::OpenAi);
        for region in &definition.regions {
            let id = definition.effective_instance_type(region);
            let Some(kind) = self.context.catalog.instance_type(id) else {
                // Told already.
                continue;
            };
            let memory_bytes = kind.model_memory_bytes(engine);
            if memory_bytes >= known.needed_bytes {
                continue;
            }
            let (needs, has) = (amount(known.needed_bytes), amount(memory_bytes));
            let fitting = self.context.catalog.smallest_with_memory(known.needed_bytes);
            let advice = fitting.map_or_else(
                || "and none here is larger".to_owned(),
                |kind| format!("use `{}`", kind.id),
            );
            let field = definition
                .instance_types
                .iter()
                .position(|kind| kind.r#type == id)
                .map_or_else(
                    || "instance_types".to_owned(),
                    |index| format!("instance_types.{index}.type"),
                );
            self.wrong(
                field,
                format!("the model needs {needs} of memory, and instance type `{id}` has {has}: {advice}"),
            );
            return;
        }
    }
}

/// Longest part of a name that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 200;

fn shown(name: &str) -> String {
    name.chars().take(SHOWN_CHARACTERS).collect()
}
