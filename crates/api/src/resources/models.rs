//! Models that this installation has, for whoever wants to deploy one. They come and go by the operator's door alone.

use tram_model::{Model, memory};
use tram_types::Int64;

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    wire::model::{ListStoredModelsReply, StoredModel},
};

pub(crate) fn endpoints() -> Vec<Endpoint> {
    // Not `/v1/models`: that is OpenAI's, and lists what can be asked.
    vec![get("/v1/stored_models", "ListStoredModels", list)]
}

async fn list(call: Call) -> Result<ListStoredModelsReply, Error> {
    let models = call.api.models.as_ref().map(tram_model::ModelStore::list);
    Ok(ListStoredModelsReply {
        models: models.unwrap_or_default().iter().map(shown).collect(),
    })
}

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
    }
}

fn whole(number: u64) -> Int64 {
    Int64(i64::try_from(number).unwrap_or(i64::MAX))
}
