//! Models that this installation has, for whoever wants to deploy one, and well-known ones that it could have. They come and
//! go by the operator's door alone.

use tram_model::{
    Model,
    catalog::{self, Entry},
    memory,
};
use tram_types::{Int64, engine::Engine};

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    wire::model::{
        CatalogModel, ListModelCatalogReply, ListModelEnginesReply, ListStoredModelsReply, ModelEngine,
        StoredModel,
    },
};

pub(crate) fn endpoints() -> Vec<Endpoint> {
    // Not `/v1/models`: that is OpenAI's, and lists what can be asked.
    vec![
        get("/v1/stored_models", "ListStoredModels", list),
        get("/v1/model_catalog", "ListModelCatalog", catalog),
        get("/v1/model_engines", "ListModelEngines", engines),
    ]
}

async fn list(call: Call) -> Result<ListStoredModelsReply, Error> {
    let models = call.api.models.as_ref().map(tram_model::ModelStore::list);
    Ok(ListStoredModelsReply {
        models: models.unwrap_or_default().iter().map(shown).collect(),
    })
}

async fn catalog(call: Call) -> Result<ListModelCatalogReply, Error> {
    let here = call.api.models.as_ref().map(tram_model::ModelStore::list);
    let here = here.unwrap_or_default();
    let entry = |entry: &Entry| CatalogModel {
        name: entry.name.to_owned(),
        title: entry.title.to_owned(),
        maker: entry.maker.to_owned(),
        licence: entry.licence.to_owned(),
        is_open: entry.is_open,
        purpose: entry.purpose.as_str().to_owned(),
        parameters: whole(entry.parameters_millions.saturating_mul(MILLION)),
        quantization: entry.quantization.to_owned(),
        context_length: whole(entry.context_length),
        size_bytes: whole(entry.size_bytes()),
        needed_bytes: whole(entry.needed_bytes()),
        engine: Engine::Tram.facts().name.to_owned(),
        source: entry.source.to_owned(),
        is_stored: here.iter().any(|model| model.origin == entry.source),
    };
    Ok(ListModelCatalogReply {
        models: catalog::ENTRIES.iter().map(entry).collect(),
    })
}

async fn engines(_: Call) -> Result<ListModelEnginesReply, Error> {
    let shown = |engine: Engine| {
        let facts = engine.facts();
        ModelEngine {
            name: facts.name.to_owned(),
            image_example: facts.image_example.to_owned(),
            ready_path: facts.ready_path.to_owned(),
            metrics_path: facts.metrics_path.to_owned(),
            streams_survive: facts.streams_survive,
            tells_cached_tokens: facts.tells_cached_tokens,
            separates_callers: facts.separates_callers,
            takes_adapters: facts.takes_adapters,
            takes_drafts: facts.takes_drafts,
            lacks: facts.lacks.iter().map(|path| (*path).to_owned()).collect(),
        }
    };
    Ok(ListModelEnginesReply {
        engines: Engine::ALL.into_iter().map(shown).collect(),
    })
}

const MILLION: u64 = 1_000_000;

fn shown(model: &Model) -> StoredModel {
    let gguf = &model.gguf;
    StoredModel {
        name: model.name.clone(),
        digest: model.digest.to_string(),
        size_bytes: whole(model.size_bytes),
        origin: model.origin.clone(),
        added_at: Some(model.added_at),
        architecture: gguf.architecture.clone(),
        title: gguf.name.clone(),
        parameters: whole(gguf.parameters),
        quantization: gguf.quantization.clone(),
        context_length: whole(gguf.context_length),
        needed_bytes: whole(memory::needed_bytes(model, 0)),
        is_embedding: gguf.is_embedding,
        is_adapter: gguf.is_adapter,
    }
}

fn whole(number: u64) -> Int64 {
    Int64(i64::try_from(number).unwrap_or(i64::MAX))
}
