//! What holds for every endpoint.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::fixture::{Fixture, PANEL};
use crate::{auth::Access, endpoint::Endpoint, resources::endpoints};

/// The path of an endpoint with an id that nothing has.
fn concrete(endpoint: &Endpoint) -> String {
    endpoint
        .path
        .split('/')
        .map(|part| match part.starts_with('{') {
            true => "00000000-0000-4000-8000-000000000000",
            false => part,
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn every_endpoint_refuses_who_has_no_token() {
    let mut fixture = Fixture::new().await;
    for endpoint in endpoints() {
        // Failures of one endpoint must not have the next one refused for their number.
        fixture.forget_failures();
        for token in [None, Some("nonsense")] {
            let reply = fixture
                .send(
                    token,
                    endpoint.method.clone(),
                    &concrete(&endpoint),
                    b"{}".to_vec(),
                )
                .await;
            if endpoint.access == Access::Anonymous {
                assert_eq!(reply.status, StatusCode::OK, "{endpoint:?}");
            } else {
                assert_eq!(reply.bad(401)["code"], "authentication_error", "{endpoint:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_address_that_fails_too_often_waits() {
    let fixture = Fixture::new().await;
    let call = async || {
        fixture
            .send(Some("nonsense"), Method::GET, "/v1/apps", Vec::new())
            .await
    };
    // One more than the limit and some: the refusal must come.
    for _ in 0..100 {
        let reply = call().await;
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(reply.headers.contains_key("retry-after"));
            assert_eq!(reply.bad(429)["code"], "rate_limit_exceeded");
            return;
        }
        reply.bad(401);
    }
    panic!("no limit to failures");
}

#[tokio::test]
async fn a_reader_changes_nothing_and_sees_no_secret() {
    let fixture = Fixture::new().await;
    let reader = Some(fixture.acme.reader.as_str());
    for endpoint in endpoints() {
        let reply = fixture
            .send(
                reader,
                endpoint.method.clone(),
                &concrete(&endpoint),
                b"{}".to_vec(),
            )
            .await;
        match endpoint.access {
            Access::Write => assert_eq!(reply.bad(403)["code"], "authorization_error", "{endpoint:?}"),
            Access::Read | Access::List | Access::Ask | Access::Anonymous => {
                assert_ne!(reply.status, StatusCode::FORBIDDEN, "{endpoint:?}");
            }
        }
    }
}

#[tokio::test]
async fn no_endpoint_is_unknown_to_itself_and_others_are_404() {
    let fixture = Fixture::new().await;
    for endpoint in endpoints() {
        let reply = fixture
            .send(
                Some(&fixture.acme.owner),
                endpoint.method.clone(),
                &concrete(&endpoint),
                b"{}".to_vec(),
            )
            .await;
        assert_ne!(
            reply.status,
            StatusCode::INTERNAL_SERVER_ERROR,
            "{endpoint:?} {}",
            reply.body
        );
        assert_ne!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{endpoint:?}");
        if !endpoint.implemented {
            let expected = [StatusCode::NOT_IMPLEMENTED, StatusCode::NOT_FOUND];
            assert!(expected.contains(&reply.status), "{endpoint:?} {}", reply.body);
            assert!(reply.body["code"].is_string(), "{endpoint:?}");
        }
    }
    let unknown = fixture.get("/v1/nothing").await;
    assert!(unknown.headers.contains_key("x-request-id"));
    assert_eq!(unknown.bad(404)["code"], "not_found");
    let wrong = fixture.with(Method::DELETE, "/v1/apps", json!({})).await;
    assert!(wrong.headers.contains_key("x-request-id"));
    assert_eq!(wrong.bad(405)["code"], "method_not_allowed");
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_as_everything_is() {
    let fixture = Fixture::new().await;
    let nobody = fixture.send(None, Method::GET, "/v1/apps/%FF", Vec::new()).await;
    nobody.bad(401);
    let refused = fixture.get("/v1/apps/%FF").await;
    assert!(refused.headers.contains_key("x-request-id"));
    assert_eq!(refused.bad(400)["fields"][0]["field"], "path");
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_no_others() {
    let fixture = Fixture::new().await;
    let asks = |origin: &str| {
        http::Request::options("/v1/apps")
            .header("origin", origin)
            .header("access-control-request-method", "PATCH")
            .header(
                "access-control-request-headers",
                "authorization,content-type,x-koyeb-project-id",
            )
            .body(axum::body::Body::empty())
            .unwrap()
    };
    let allowed = fixture.call(asks(PANEL)).await;
    assert_eq!(allowed.status, StatusCode::OK);
    assert_eq!(allowed.headers["access-control-allow-origin"], PANEL);
    let names = |reply: &super::fixture::Reply, header: &str| {
        let value = reply.headers[header].to_str().unwrap();
        value.replace(' ', "")
    };
    assert_eq!(
        names(&allowed, "access-control-allow-headers"),
        "authorization,content-type,x-koyeb-project-id"
    );
    assert!(names(&allowed, "access-control-allow-methods").contains("PATCH"));
    let called = http::Request::get("/v1/apps")
        .header("origin", PANEL)
        .header("authorization", format!("Bearer {}", fixture.acme.owner))
        .body(axum::body::Body::empty())
        .unwrap();
    let called = fixture.call(called).await;
    assert_eq!(called.headers["access-control-allow-origin"], PANEL);
    assert_eq!(
        names(&called, "access-control-expose-headers"),
        "x-request-id,x-tram-warning"
    );
    called.good();
    let other = fixture.call(asks("https://evil.example.org")).await;
    assert!(!other.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn what_is_ignored_of_a_request_is_named() {
    let fixture = Fixture::new().await;
    let warned = fixture.get("/v1/apps?limit=1&nmae=a&nmae=b&statsu=X").await;
    assert_eq!(
        warned.headers["x-tram-warning"],
        "ignored unknown parameters: nmae, statsu"
    );
    let silent = fixture.get("/v1/apps?limit=1&name=a").await;
    assert!(!silent.headers.contains_key("x-tram-warning"));
    let app = fixture.app("shop").await;
    for (mask, field) in [("nmae", "`nmae`"), ("name,life_cycle.x", "`life_cycle.x`")] {
        let path = format!("/v1/apps/{app}?update_mask={mask}");
        let refused = fixture
            .with(Method::PATCH, &path, json!({"name":"other"}))
            .await
            .bad(400);
        assert_eq!(refused["fields"][0]["field"], "update_mask");
        assert!(refused["message"].as_str().unwrap().contains(field), "{refused}");
    }
    assert_eq!(
        fixture.get(&format!("/v1/apps/{app}")).await.good()["app"]["name"],
        "shop"
    );
    let path = format!("/v1/apps/{app}?update_mask=name,life_cycle.delete_when_empty");
    fixture
        .with(Method::PATCH, &path, json!({"name":"other"}))
        .await
        .good();
    assert_eq!(
        fixture.get(&format!("/v1/apps/{app}")).await.good()["app"]["name"],
        "other"
    );
}

#[tokio::test]
async fn a_panic_and_a_lost_database_are_told_without_their_cause() {
    let mut fixture = Fixture::new().await;
    async fn broken(_: crate::endpoint::Call) -> Result<crate::wire::app::DeleteAppReply, crate::Error> {
        panic!("the secret cause")
    }
    let endpoint = crate::endpoint::get("/v1/broken", "Broken", broken);
    let router = crate::router::build(fixture.api.clone(), vec![endpoint]);
    fixture.router = router;
    let refused = fixture.get("/v1/broken").await;
    let request = refused.headers["x-request-id"].to_str().unwrap().to_owned();
    let body = refused.bad(500);
    assert_eq!(body["code"], "internal");
    assert!(body["message"].as_str().unwrap().contains(&request) && !body.to_string().contains("secret"));
    fixture.api.store.close().await;
    let body = fixture.get("/v1/broken").await.bad(503);
    assert_eq!(body["code"], "unavailable");
    assert!(!body.to_string().contains("database"));
}

#[tokio::test]
async fn a_request_id_is_taken_over_when_it_is_one() {
    let fixture = Fixture::new().await;
    for (given, taken) in [("abc-1.2_3", true), ("a b", false), ("", false)] {
        let request = http::Request::get("/v1/test/anon").header("x-request-id", given);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(fixture.router.clone(), request)
            .await
            .unwrap();
        assert_eq!(response.headers()["x-request-id"] == given, taken, "{given}");
    }
}

#[tokio::test]
async fn the_document_has_every_endpoint_and_resolves() {
    let fixture = Fixture::new().await;
    let document = fixture
        .send(None, Method::GET, "/v1/openapi.json", Vec::new())
        .await
        .good();
    for endpoint in endpoints() {
        let method = endpoint.method.as_str().to_lowercase();
        let operation = &document["paths"][endpoint.path][method];
        assert_eq!(operation["operationId"], endpoint.operation, "{endpoint:?}");
    }
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 100);
    for reference in references {
        let name = reference.trim_start_matches("#/components/schemas/");
        assert!(
            document["components"]["schemas"].get(name).is_some(),
            "{reference}"
        );
    }
}

#[tokio::test]
async fn the_document_has_the_strings_of_the_wire() {
    let fixture = Fixture::new().await;
    let document = fixture
        .send(None, Method::GET, "/v1/openapi.json", Vec::new())
        .await
        .good();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut enumerations = 0;
    for (name, schema) in schemas {
        let Some(members) = schema["enum"].as_array() else {
            continue;
        };
        enumerations += 1;
        for member in members {
            let text = member.as_str().unwrap();
            let mixed = text.contains(char::is_uppercase) && text.contains(char::is_lowercase);
            assert!(!mixed, "{name} has the name of a variant: {text}");
        }
    }
    assert!(enumerations > 30);
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| collect(member, references));
        }
        Value::Array(entries) => entries.iter().for_each(|entry| collect(entry, references)),
        _ => {}
    }
}
