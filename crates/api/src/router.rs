//! From the list of endpoints to a router.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    middleware,
    response::IntoResponse,
    routing::{MethodFilter, MethodRouter, get, on},
};
use http::{
    HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use tower_http::cors::CorsLayer;
use utoipa::openapi::OpenApi;

use crate::{
    auth::PROJECT_HEADER,
    endpoint::{Endpoint, WARNING_HEADER},
    error::Error,
    openapi::document as openapi_document,
    resources::endpoints,
    serve::{REQUEST_ID_HEADER, name_request, serve},
    state::ApiState,
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
    let mut router = crate::inference::router(api.clone());
    let api_url = api.settings.api_url.clone();
    for endpoint in endpoints {
        router = router.route(endpoint.path, method_router(api.clone(), endpoint));
    }
    let document: Arc<OnceLock<OpenApi>> = Arc::default();
    let origins = api.settings.allowed_origins.clone();
    let router = router
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
        });
    // The last layer is the first that a request meets: every answer has the request's id.
    match origins.is_empty() {
        true => router,
        false => router.layer(cross_origin(origins)),
    }
    .layer(middleware::from_fn(name_request))
}

/// Lets pages of these origins call the API from a browser, with a token that they hold themselves: there are no
/// cookies here.
fn cross_origin(origins: Vec<HeaderValue>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static(PROJECT_HEADER),
        ])
        .expose_headers([REQUEST_ID_HEADER, WARNING_HEADER])
        .max_age(PREFLIGHT_AGE)
}

/// How long a browser remembers what a page may do: it asks before every call otherwise, and a changed setting is seen
/// soon.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

fn method_router(api: ApiState, endpoint: Endpoint) -> MethodRouter {
    let filter = match endpoint.method.as_str() {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    };
    let endpoint = Arc::new(endpoint);
    on(
        filter,
        move |path: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
            serve(api.clone(), Arc::clone(&endpoint), path, request)
        },
    )
}

fn answer(error: &Error) -> impl IntoResponse + use<> {
    error.respond("")
}

/// Longest path that is repeated in a message, in characters.
const SHOWN_PATH_CHARACTERS: usize = 200;

fn shown(path: &str) -> String {
    path.chars().take(SHOWN_PATH_CHARACTERS).collect()
}
