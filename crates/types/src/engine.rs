//! The servers of models that a definition may name, and what is known of each: one contract for all of them.
//!
//! Validation, the controller (how one is started: `spec/model.rs` there), the edge and the API read it. Of an engine that
//! is not ours only that is taken for granted which its makers document; what is not known is not promised.

/// A server of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The platform's own.
    Tram,
    /// llama.cpp's.
    LlamaServer,
    /// vLLM's.
    Vllm,
    /// SGLang's.
    Sglang,
    /// Whatever an image holds that speaks OpenAI's contract.
    OpenAi,
}

/// What is known of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// As `definition.model.engine` names it.
    pub name: &'static str,
    /// An image that has it, for words to users; empty: none is given, the engine is carried.
    pub image_example: &'static str,
    /// Answers with 200 once the model is loaded.
    pub ready_path: &'static str,
    /// Where Prometheus reads it; empty: not known.
    pub metrics_path: &'static str,
    /// It tells what another instance needs to go on with an answer, so a stream outlives its instance.
    pub streams_survive: bool,
    /// It says what a streamed answer cost without being asked in `stream_options`.
    pub tells_usage: bool,
    /// It says how much of a prompt it had read before.
    pub tells_cached_tokens: bool,
    /// Nothing that one caller's prompt left in its cache hurries another's.
    pub separates_callers: bool,
    /// It takes adapters in GGUF files, and a request asks for one by its name.
    pub takes_adapters: bool,
    /// It takes a smaller model that guesses for it.
    pub takes_drafts: bool,
    /// Paths of the platform's own address that it does not serve. Of any other it says itself whether it does.
    pub lacks: &'static [&'static str],
}

/// Mistral's path for filling in, which only our engine has.
const FIM: &str = "/v1/fim/completions";

impl Engine {
    /// All of them, ours first.
    pub const ALL: [Self; 5] = [
        Self::Tram,
        Self::LlamaServer,
        Self::Vllm,
        Self::Sglang,
        Self::OpenAi,
    ];

    /// The engine that `definition.model.engine` means; empty means ours.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::Tram);
        }
        Self::ALL.into_iter().find(|engine| engine.facts().name == name)
    }

    /// What is known of it.
    #[must_use]
    pub const fn facts(self) -> Facts {
        let strange = Facts {
            name: "openai",
            image_example: "registry.example.com/engine:1",
            ready_path: "/v1/models",
            metrics_path: "",
            streams_survive: false,
            tells_usage: false,
            tells_cached_tokens: false,
            separates_callers: false,
            takes_adapters: false,
            takes_drafts: false,
            lacks: &[],
        };
        match self {
            Self::Tram => Facts {
                name: "tram-engine",
                image_example: "",
                ready_path: "/health",
                metrics_path: "/metrics",
                streams_survive: true,
                tells_usage: true,
                tells_cached_tokens: true,
                separates_callers: true,
                takes_adapters: true,
                takes_drafts: true,
                ..strange
            },
            Self::LlamaServer => Facts {
                name: "llama-server",
                image_example: "ghcr.io/ggml-org/llama.cpp:server",
                ready_path: "/health",
                metrics_path: "/metrics",
                tells_cached_tokens: true,
                lacks: &[FIM],
                ..strange
            },
            Self::Vllm => Facts {
                name: "vllm",
                image_example: "vllm/vllm-openai:latest",
                ready_path: "/health",
                metrics_path: "/metrics",
                tells_cached_tokens: true,
                lacks: &[FIM],
                ..strange
            },
            Self::Sglang => Facts {
                name: "sglang",
                image_example: "lmsysorg/sglang:latest",
                ready_path: "/health",
                metrics_path: "/metrics",
                tells_cached_tokens: true,
                lacks: &[FIM],
                ..strange
            },
            Self::OpenAi => strange,
        }
    }

    /// The names of all, for words to users.
    #[must_use]
    pub fn names() -> String {
        let names: Vec<String> = Self::ALL
            .iter()
            .map(|engine| format!("`{}`", engine.facts().name))
            .collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_found_by_its_name_and_no_other() {
        for engine in Engine::ALL {
            assert_eq!(Engine::named(engine.facts().name), Some(engine));
        }
        assert_eq!(Engine::named(""), Some(Engine::Tram));
        assert_eq!(Engine::named("ollama"), None);
    }
}
