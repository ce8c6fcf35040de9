//! The OpenAPI document, made from the list of endpoints.

use http::StatusCode;
use utoipa::openapi::{
    Components, Content, Info, OpenApi, Paths, Ref, RefOr, Required, Response, ResponseBuilder, Server,
    path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::Schema,
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use crate::{
    auth::Access,
    endpoint::{Endpoint, Message},
    wire::error::{Error, ErrorWithFields},
};

const JSON: &str = "application/json";
const SCHEME: &str = "bearer";

/// The document for these endpoints, reached at `api_url`.
pub(crate) fn document(endpoints: &[Endpoint], api_url: &str) -> OpenApi {
    let mut paths = Paths::new();
    let mut components = Components::new();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    for failure in [Message::of::<Error>(), Message::of::<ErrorWithFields>()] {
        add(&mut components, &failure.name, &failure.schema);
        for (name, schema) in &failure.parts {
            add(&mut components, name, schema);
        }
    }
    for endpoint in endpoints {
        let Some(method) = method(&endpoint.method) else {
            continue;
        };
        for message in [&endpoint.takes, &endpoint.gives].into_iter().flatten() {
            add(&mut components, &message.name, &message.schema);
            for (name, schema) in &message.parts {
                add(&mut components, name, schema);
            }
        }
        paths.add_path_operation(endpoint.path, vec![method], operation(endpoint));
    }
    let mut document = OpenApi::new(Info::new("Tramontane", env!("CARGO_PKG_VERSION")), paths);
    document.components = Some(components);
    document.servers = Some(vec![Server::new(api_url)]);
    document
}

fn add(components: &mut Components, name: &str, schema: &RefOr<Schema>) {
    components
        .schemas
        .entry(name.to_owned())
        .or_insert_with(|| schema.clone());
}

fn method(method: &http::Method) -> Option<HttpMethod> {
    match method.as_str() {
        "GET" => Some(HttpMethod::Get),
        "POST" => Some(HttpMethod::Post),
        "PUT" => Some(HttpMethod::Put),
        "PATCH" => Some(HttpMethod::Patch),
        "DELETE" => Some(HttpMethod::Delete),
        _ => None,
    }
}

fn operation(endpoint: &Endpoint) -> OperationBuilder {
    let mut operation = OperationBuilder::new().operation_id(Some(endpoint.operation));
    if endpoint.access != Access::Anonymous {
        operation = operation.security(SecurityRequirement::new(SCHEME, Vec::<String>::new()));
    }
    for name in path_parameters(endpoint.path) {
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(<String as utoipa::PartialSchema>::schema())),
        );
    }
    for parameter in &endpoint.parameters {
        operation = operation.parameter(parameter.clone());
    }
    if let Some(message) = &endpoint.takes {
        operation = operation.request_body(Some(
            RequestBodyBuilder::new()
                .content(JSON, Content::new(Some(Ref::from_schema_name(&message.name))))
                .build(),
        ));
    }
    match endpoint.refusal {
        None => {
            let mut good = ResponseBuilder::new().description("Done.");
            if let Some(message) = &endpoint.gives {
                good = good.content(JSON, Content::new(Some(Ref::from_schema_name(&message.name))));
            }
            operation = operation
                .response("200", good.build())
                .response(
                    "400",
                    failure("The request breaks rules.", &Message::of::<ErrorWithFields>()),
                )
                .response(
                    "404",
                    failure("There is no such object.", &Message::of::<Error>()),
                );
        }
        Some(refusal) => {
            let why = match refusal {
                StatusCode::NOT_FOUND => "An installation of your own has nothing of the kind.",
                _ => "This installation cannot do this.",
            };
            operation = operation.response(refusal.as_str(), failure(why, &Message::of::<Error>()));
        }
    }
    for (status, why) in FAILURES {
        operation = operation.response(*status, failure(why, &Message::of::<Error>()));
    }
    operation
}

/// What any call may answer.
const FAILURES: &[(&str, &str)] = &[
    ("401", "There is no token, or none that is known."),
    ("403", "The token may only read."),
    (
        "500",
        "The platform failed: give the request's id to whoever operates it.",
    ),
    ("503", "A part of the platform cannot answer now: try again."),
];

fn failure(why: &str, message: &Message) -> Response {
    ResponseBuilder::new()
        .description(why)
        .content(JSON, Content::new(Some(Ref::from_schema_name(&message.name))))
        .build()
}

/// The names in braces of a path.
pub(crate) fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}
