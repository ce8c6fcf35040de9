//! From the list of endpoints to a router.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{RawPathParams, Request},
    response::IntoResponse,
    routing::{MethodFilter, MethodRouter, get, on},
};
use utoipa::openapi::OpenApi;

use crate::{
    endpoint::Endpoint, error::Error, openapi::document as openapi_document, resources::endpoints,
    serve::serve, state::ApiState,
};

/// Where the OpenAPI document is.
pub(crate) const OPENAPI_PATH: &str = "/v1/openapi.json";

/// The API, ready to be served. It listens nowhere itself.
pub fn router(api: ApiState) -> Router {
    build(api, endpoints())
}

/// The OpenAPI document of the API that is reached at `api_url`.
#[must_use]
pub fn openapi(api_url: &str) -> OpenApi {
    openapi_document(&endpoints(), api_url)
}

pub(crate) fn build(api: ApiState, endpoints: Vec<Endpoint>) -> Router {
    let mut router = Router::new();
    let api_url = api.settings.api_url.clone();
    for endpoint in endpoints {
        router = router.route(endpoint.path, method_router(api.clone(), endpoint));
    }
    let document: Arc<OnceLock<OpenApi>> = Arc::default();
    router
        .route(
            OPENAPI_PATH,
            get(move || async move { Json(document.get_or_init(|| openapi(&api_url)).clone()) }),
        )
        .fallback(|request: Request| async move {
            answer(&Error::NoSuchEndpoint {
                method: request.method().to_string(),
                path: shown(request.uri().path()),
            })
        })
        .method_not_allowed_fallback(|request: Request| async move {
            answer(&Error::MethodNotAllowed {
                method: request.method().to_string(),
                path: shown(request.uri().path()),
            })
        })
}

fn method_router(api: ApiState, endpoint: Endpoint) -> MethodRouter {
    let filter = match endpoint.method.as_str() {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    };
    let endpoint = Arc::new(endpoint);
    on(filter, move |path: RawPathParams, request: Request| {
        serve(api.clone(), Arc::clone(&endpoint), path, request)
    })
}

fn answer(error: &Error) -> impl IntoResponse + use<> {
    error.respond("")
}

/// Longest path that is repeated in a message, in characters.
const SHOWN_PATH_CHARACTERS: usize = 200;

fn shown(path: &str) -> String {
    path.chars().take(SHOWN_PATH_CHARACTERS).collect()
}
