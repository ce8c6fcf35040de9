//! Secrets, domains, tokens, organizations.

use std::{sync::atomic::Ordering, time::Duration};

use http::Method;
use serde_json::{Value, json};
use tram_store::{intent::NewCredential, record::Role};
use tram_types::{Clock as _, CredentialId, status::CredentialType};

use super::fixture::{Fixture, text, web};

#[tokio::test]
async fn secrets_are_shown_without_their_value_and_revealed_on_request() {
    let fixture = Fixture::new().await;
    let made = fixture
        .post(
            "/v1/secrets",
            json!({"name":"db","type":"SIMPLE","value":"s3cret"}),
        )
        .await
        .good();
    assert!(!made.to_string().contains("s3cret"));
    let id = text(&made["secret"]["id"]);
    let reveal = format!("/v1/secrets/{id}/reveal");
    assert_eq!(
        fixture.post(&reveal, json!({})).await.good(),
        json!({"value":"s3cret"})
    );
    fixture
        .with(
            Method::PATCH,
            &format!("/v1/secrets/{id}"),
            json!({"name":"database"}),
        )
        .await
        .good();
    assert_eq!(
        fixture.post(&reveal, json!({})).await.good(),
        json!({"value":"s3cret"})
    );
    let listed = fixture.get("/v1/secrets?name=database&types=SIMPLE").await.good();
    assert_eq!(listed["count"], 1);
    assert!(!listed.to_string().contains("s3cret"));
    let hub = json!({"name":"hub","type":"REGISTRY","docker_hub_registry":{"username":"u","password":"p"}});
    let hub = fixture.post("/v1/secrets", hub).await.good()["secret"]["id"].clone();
    let reveal = format!("/v1/secrets/{}/reveal", text(&hub));
    assert_eq!(
        fixture.post(&reveal, json!({})).await.good(),
        json!({"value":{"username":"u","password":"p"}})
    );
    let ghcr = json!({"github_registry":{"username":"g","password":"q"}});
    fixture
        .with(
            Method::PUT,
            &format!("/v1/secrets/{}?update_mask=github_registry", text(&hub)),
            ghcr,
        )
        .await
        .good();
    assert_eq!(
        fixture.post(&reveal, json!({})).await.good(),
        json!({"value":{"username":"g","password":"q"}})
    );
    fixture
        .with(Method::DELETE, &format!("/v1/secrets/{id}"), json!({}))
        .await
        .good();
    fixture.get(&format!("/v1/secrets/{id}")).await.bad(404);
}

#[tokio::test]
async fn a_definition_may_only_name_secrets_that_are_there() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let mut definition = web("web", "/");
    definition["env"] = json!([{"key":"A","value":"{{ secret.db }}"},{"key":"B","secret":"nothing"}]);
    definition["docker"]["image_registry_secret"] = json!("db");
    let body = json!({"app_id":app,"definition":definition});
    let fields = |refused: &Value| {
        let fields = refused["fields"].as_array().unwrap().iter();
        fields.map(|field| text(&field["field"])).collect::<Vec<_>>()
    };
    let refused = fixture.post("/v1/services", body.clone()).await.bad(400);
    assert_eq!(
        fields(&refused),
        [
            "definition.docker.image_registry_secret",
            "definition.env.0.value",
            "definition.env.1.secret"
        ]
    );
    fixture
        .post("/v1/secrets", json!({"name":"db","type":"SIMPLE","value":"v"}))
        .await
        .good();
    let refused = fixture.post("/v1/services", body).await.bad(400);
    assert_eq!(
        fields(&refused),
        [
            "definition.docker.image_registry_secret",
            "definition.env.1.secret"
        ]
    );
}

#[tokio::test]
async fn domains_are_attached_renamed_and_verified() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let custom = json!({"name":"Shop.Example.org","type":"CUSTOM","koyeb":{"request_timeout_seconds":300}});
    let custom = fixture.post("/v1/domains", custom).await.good()["domain"].clone();
    assert_eq!(
        (&custom["name"], &custom["status"], &custom["app_id"]),
        (&json!("shop.example.org"), &json!("PENDING"), &json!(""))
    );
    assert!(custom.get("cloudflare").is_none() && custom["koyeb"]["request_timeout_seconds"] == 300);
    assert!(text(&custom["intended_cname"]).ends_with(".cname.tram.localhost"));
    let path = format!("/v1/domains/{}", text(&custom["id"]));
    let attached = fixture
        .with(Method::PATCH, &path, json!({"app_id":app}))
        .await
        .good();
    assert_eq!(attached["domain"]["app_id"], json!(app));
    let detached = fixture
        .with(Method::PATCH, &format!("{path}?update_mask=app_id"), json!({}))
        .await
        .good();
    assert_eq!(detached["domain"]["app_id"], "");
    let refresh = format!("{path}/refresh");
    fixture.dns.is_silent.store(true, Ordering::Relaxed);
    let silent = fixture.post(&refresh, json!({})).await.bad(503);
    assert!(text(&silent["message"]).contains("stays PENDING"), "{silent}");
    assert_eq!(fixture.get(&path).await.good()["domain"]["status"], "PENDING");
    fixture.dns.is_silent.store(false, Ordering::Relaxed);
    assert_eq!(fixture.post(&refresh, json!({})).await.good(), json!({}));
    assert_eq!(fixture.get(&path).await.good()["domain"]["status"], "ACTIVE");
    let auto = fixture
        .get(&format!("/v1/domains?app_ids={app}&types=AUTOASSIGNED"))
        .await
        .good();
    let auto = format!("/v1/domains/{}", text(&auto["domains"][0]["id"]));
    let renamed = json!({"subdomain":"my-shop"});
    let tried = fixture
        .with(Method::PATCH, &format!("{auto}?dry_run=true"), renamed.clone())
        .await
        .good();
    assert!(text(&tried["domain"]["name"]).starts_with("shop-acme-"));
    let renamed = fixture.with(Method::PATCH, &auto, renamed).await.good();
    assert_eq!(renamed["domain"]["name"], "my-shop.tram.localhost");
    fixture.with(Method::DELETE, &path, json!({})).await.good();
    fixture.get(&path).await.bad(404);
}

#[tokio::test]
async fn a_domain_that_could_never_be_served_is_refused() {
    let fixture = Fixture::new().await;
    for (body, field) in [
        (json!({"name":"*.example.org","type":"CUSTOM"}), "name"),
        (
            json!({"name":"a.example.org","koyeb":{"request_timeout_seconds":-1}}),
            "koyeb.request_timeout_seconds",
        ),
        (
            json!({"name":"a.example.org","koyeb":{"request_timeout_seconds":901}}),
            "koyeb.request_timeout_seconds",
        ),
    ] {
        let refused = fixture.post("/v1/domains", body.clone()).await.bad(400);
        assert_eq!(refused["fields"][0]["field"], field, "{body} {refused}");
    }
    let unset = json!({"name":"a.example.org","koyeb":{"request_timeout_seconds":0}});
    fixture.post("/v1/domains", unset).await.good();
}

#[tokio::test]
async fn a_token_is_narrowed_and_widened_within_the_life_of_the_one_that_asks() {
    let fixture = Fixture::new().await;
    let made = json!({"name":"ci","type":"ORGANIZATION"});
    let made = fixture.post("/v1/credentials", made).await.good()["credential"].clone();
    let (token, path) = (
        text(&made["token"]),
        format!("/v1/credentials/{}", text(&made["id"])),
    );
    let end = fixture.clock.now().plus(Duration::from_secs(3600));
    let narrowed = json!({"role":"READ_ONLY","expires_at":end});
    let narrowed = fixture.with(Method::PATCH, &path, narrowed).await.good()["credential"].clone();
    assert_eq!(
        (&narrowed["role"], &narrowed["expires_at"], &narrowed["name"]),
        (&json!("READ_ONLY"), &json!(end), &json!("ci"))
    );
    fixture
        .send(Some(&token), Method::POST, "/v1/apps", b"{}".to_vec())
        .await
        .bad(403);
    // A client that does not know role and end keeps them.
    let renamed = fixture
        .with(Method::PUT, &path, json!({"name":"renamed"}))
        .await
        .good();
    assert_eq!(
        (
            &renamed["credential"]["role"],
            &renamed["credential"]["expires_at"]
        ),
        (&json!("READ_ONLY"), &json!(end))
    );
    let switch = format!("/v1/organizations/{}/switch", fixture.acme.organization.id);
    let session = text(&fixture.post(&switch, json!({})).await.good()["token"]["id"]);
    let later = fixture.clock.now().plus(Duration::from_secs(48 * 3600));
    for (query, body, field) in [
        ("", json!({"role":"ADMIN"}), "role"),
        ("", json!({"expires_at":"2001-01-01T00:00:00Z"}), "expires_at"),
        ("", json!({"expires_at":later}), "expires_at"),
        ("?update_mask=expires_at", json!({}), "expires_at"),
    ] {
        let path = format!("{path}{query}");
        let bytes = body.to_string().into_bytes();
        let refused = fixture.send(Some(&session), Method::PATCH, &path, bytes).await;
        assert_eq!(refused.bad(400)["fields"][0]["field"], field, "{query} {body}");
    }
    let path = format!("{path}?update_mask=expires_at,role");
    let widened = fixture
        .with(Method::PATCH, &path, json!({"role":"OWNER"}))
        .await
        .good();
    assert_eq!(
        (
            &widened["credential"]["role"],
            &widened["credential"]["expires_at"]
        ),
        (&json!("OWNER"), &Value::Null)
    );
}

#[tokio::test]
async fn a_member_is_not_hidden_by_the_sessions_of_another() {
    let fixture = Fixture::new().await;
    let user = Some(fixture.acme.user.as_str());
    let path = "/v1/account/session";
    for _ in 0..3 {
        fixture.send(user, Method::POST, path, Vec::new()).await.good();
    }
    for name in ["bob", "carl"] {
        let new = NewCredential {
            id: CredentialId::random(),
            organization_id: fixture.acme.organization.id,
            user_id: name.to_owned(),
            kind: CredentialType::User,
            role: Role::Owner,
            name: name.to_owned(),
            description: String::new(),
            token_sha256: tram_store::token_sha256(name),
            expires_at: None,
        };
        fixture.api.store.create_credential(new).await.unwrap();
    }
    let members = fixture
        .get("/v1/organization_members?limit=2&offset=1")
        .await
        .good();
    let names: Vec<_> = members["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| text(&one["user_id"]))
        .collect();
    assert_eq!(
        (&members["count"], names),
        (&json!(3), vec!["bob".to_owned(), "carl".to_owned()])
    );
    let one = fixture.get("/v1/organization_members?user_id=carl").await.good();
    assert_eq!(
        (&one["count"], &one["members"][0]["user_id"]),
        (&json!(1), &json!("carl"))
    );
}

#[tokio::test]
async fn the_project_of_a_header_is_honoured_or_refused() {
    let fixture = Fixture::new().await;
    let project = text(&fixture.post("/v1/projects", json!({"name":"p"})).await.good()["project"]["id"]);
    let app = fixture.app("shop").await;
    fixture.service(&app, "web", "/").await;
    let body = json!({"app_id":app,"project_id":project,"definition":web("api","/api")});
    let inside = fixture.post("/v1/services", body).await.good()["service"].clone();
    let listed = fixture.get_in(&project, "/v1/deployments").await.good();
    assert_eq!(
        (&listed["count"], &listed["deployments"][0]["service_id"]),
        (&json!(1), &inside["id"])
    );
    assert_eq!(fixture.get_in("", "/v1/deployments").await.good()["count"], 2);
    let refused = fixture.get_in("p", "/v1/deployments").await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "x-koyeb-project-id");
    // A secret of the whole organization is found by its name from inside a project.
    let secret =
        json!({"name":"hub","type":"REGISTRY","docker_hub_registry":{"username":"u","password":"p"}});
    fixture.post("/v1/secrets", secret).await.good();
    let path = "/v1/docker-helper/verify?image=private/app&secret_id=hub";
    assert_eq!(fixture.get_in(&project, path).await.good()["success"], true);
}

#[tokio::test]
async fn a_token_is_shown_once_works_and_is_revoked() {
    let fixture = Fixture::new().await;
    let made = json!({"name":"ci","type":"ORGANIZATION","role":"READ_ONLY"});
    let made = fixture.post("/v1/credentials", made).await.good()["credential"].clone();
    let token = text(&made["token"]);
    assert_eq!(token.len(), 64);
    fixture
        .send(Some(&token), Method::GET, "/v1/apps", Vec::new())
        .await
        .good();
    fixture
        .send(Some(&token), Method::POST, "/v1/apps", b"{}".to_vec())
        .await
        .bad(403);
    let path = format!("/v1/credentials/{}", text(&made["id"]));
    assert_eq!(fixture.get(&path).await.good()["credential"]["token"], "");
    assert!(
        !fixture
            .get("/v1/credentials")
            .await
            .good()
            .to_string()
            .contains(&token)
    );
    fixture.with(Method::DELETE, &path, json!({})).await.good();
    fixture
        .send(Some(&token), Method::GET, "/v1/apps", Vec::new())
        .await
        .bad(401);
}

#[tokio::test]
async fn a_session_ends_with_its_time_or_its_logout() {
    let fixture = Fixture::new().await;
    let switch = format!("/v1/organizations/{}/switch", fixture.acme.organization.id);
    let token = fixture.post(&switch, json!({})).await.good()["token"].clone();
    assert_eq!(token["organization_id"], json!(fixture.acme.organization.id));
    let session = text(&token["id"]);
    fixture
        .send(
            Some(&session),
            Method::GET,
            "/v1/account/organization",
            Vec::new(),
        )
        .await
        .good();
    fixture
        .send(Some(&session), Method::DELETE, "/v1/account/logout", Vec::new())
        .await
        .good();
    fixture
        .send(Some(&session), Method::GET, "/v1/apps", Vec::new())
        .await
        .bad(401);
    let second = text(&fixture.post(&switch, json!({})).await.good()["token"]["id"]);
    fixture.clock.advance(Duration::from_secs(25 * 3600));
    fixture
        .send(Some(&second), Method::GET, "/v1/apps", Vec::new())
        .await
        .bad(401);
    // A lasting token survives a logout.
    fixture
        .with(Method::DELETE, "/v1/account/logout", json!({}))
        .await
        .good();
    fixture.get("/v1/apps").await.good();
}

#[tokio::test]
async fn the_account_shows_a_working_organization() {
    let fixture = Fixture::new().await;
    let organization = fixture.get("/v1/account/organization").await.good()["organization"].clone();
    assert_eq!(
        (
            &organization["plan"],
            &organization["status"],
            &organization["status_message"]
        ),
        (&json!("enterprise"), &json!("ACTIVE"), &json!("VALID"))
    );
    // A token of the organization has no user; the command line client then asks for the organization.
    fixture.get("/v1/account/profile").await.bad(404);
    let user = Some(fixture.acme.user.as_str());
    let profile = fixture
        .send(user, Method::GET, "/v1/account/profile", Vec::new())
        .await
        .good();
    assert_eq!(profile["user"]["id"], "ana");
    let members = fixture.get("/v1/organization_members").await.good();
    assert_eq!(
        (&members["count"], &members["members"][0]["user"]["name"]),
        (&json!(1), &json!("ana"))
    );
}

#[tokio::test]
async fn images_are_verified_with_and_without_a_secret() {
    let fixture = Fixture::new().await;
    let verify = "/v1/docker-helper/verify";
    let good = fixture
        .get(&format!("{verify}?image=nginx&secret_id="))
        .await
        .good();
    assert_eq!(good, json!({"success":true,"reason":"","code":"UNKNOWN"}));
    let bad = fixture.get(&format!("{verify}?image=private/app")).await.good();
    assert_eq!(
        (&bad["success"], &bad["code"]),
        (&json!(false), &json!("ANON_NOT_FOUND"))
    );
    let secret = json!({"name":"reg","type":"REGISTRY","private_registry":{"url":"r.example.org","username":"u","password":"p"}});
    let secret = fixture.post("/v1/secrets", secret).await.good()["secret"]["id"].clone();
    for given in [text(&secret), "reg".to_owned()] {
        let found = fixture
            .get(&format!("{verify}?image=private/app&secret_id={given}"))
            .await
            .good();
        assert_eq!(found["success"], true, "{given}");
        // A reader would have the login sent wherever the image's name says.
        let path = format!("{verify}?image=private/app&secret_id={given}");
        fixture
            .send(Some(&fixture.acme.reader), Method::GET, &path, Vec::new())
            .await
            .bad(403);
    }
    let path = format!("{verify}?image=nginx");
    let reader = fixture
        .send(Some(&fixture.acme.reader), Method::GET, &path, Vec::new())
        .await;
    assert_eq!(reader.good()["success"], true);
}

#[tokio::test]
async fn limits_of_models_are_of_what_the_organization_has() {
    let fixture = Fixture::new().await;
    let token = json!({"name":"asker","type":"ORGANIZATION","role":"MODELS"});
    let token = fixture.post("/v1/credentials", token).await.good()["credential"].clone();
    let (id, secret) = (text(&token["id"]), text(&token["token"]));
    let organization = fixture.acme.organization.id.to_string();
    let set = async |id: &str, body| {
        fixture
            .with(Method::PUT, &format!("/v1/model_limits/{id}"), body)
            .await
    };
    let limit = set(&id, json!({"tokens_per_minute": 100, "priority": "high"}))
        .await
        .good();
    let limit = &limit["limit"];
    assert_eq!(
        (&limit["scope"], &limit["name"], &limit["tokens_per_minute"]),
        (&json!("credential"), &json!("asker"), &json!(100))
    );
    // It replaces.
    let limit = set(&id, json!({"requests_per_minute": 5})).await.good();
    assert_eq!(limit["limit"]["tokens_per_minute"], 0);
    assert_eq!(limit["limit"]["priority"], "normal");
    set(&organization, json!({"tokens_per_month": 7})).await.good();
    let wrong = set(&organization, json!({"tokens_per_month": -7, "priority": "low"}))
        .await
        .bad(400);
    let fields: Vec<&str> = wrong["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| field["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["tokens_per_month", "priority"]);
    set("00000000-0000-4000-8000-000000000000", json!({}))
        .await
        .bad(404);
    let other = fixture.other.organization.id.to_string();
    set(&other, json!({})).await.bad(404);
    let listed = fixture.get("/v1/model_limits").await.good();
    assert_eq!(listed["count"], 2);

    // A token that may ask models may do nothing else, least of all lift its limits.
    let as_asker = async |method, path: &str| fixture.send(Some(&secret), method, path, b"{}".to_vec()).await;
    let own = format!("/v1/model_limits/{id}");
    for (method, path) in [
        (Method::PUT, own.as_str()),
        (Method::DELETE, &own),
        (Method::GET, "/v1/model_limits"),
        (Method::GET, "/v1/apps"),
        (Method::GET, "/v1/credentials"),
        (Method::POST, "/v1/apps"),
    ] {
        assert_eq!(as_asker(method, path).await.status.as_u16(), 403, "{path}");
    }
    assert_eq!(as_asker(Method::GET, "/v1/models").await.status.as_u16(), 200);
    fixture.with(Method::DELETE, &own, json!({})).await.good();
    fixture.with(Method::DELETE, &own, json!({})).await.bad(404);
}

#[tokio::test]
async fn counters_and_limits_tell_what_is_there() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    fixture.instance(&service).await;
    fixture.clock.advance(Duration::from_secs(90));
    let id = fixture.acme.organization.id;
    let usage = fixture
        .get(&format!("/v1/quotas/organizations/{id}/usage"))
        .await
        .good()["usage"]
        .clone();
    assert_eq!(
        (
            &usage["apps_used"],
            &usage["services_used"],
            &usage["memory_mb_used"]
        ),
        (&json!(1), &json!(1), &json!(256))
    );
    let summary = fixture
        .get(&format!("/v1/organizations/{id}/summary"))
        .await
        .good()["summary"]
        .clone();
    assert_eq!(
        summary["services"]["WEB"],
        json!({"total":"1","by_status":{"STARTING":"1"}})
    );
    let quotas = fixture
        .get(&format!("/v1/organizations/{id}/quotas"))
        .await
        .good()["quotas"]
        .clone();
    assert!(quotas["apps"].is_string() && quotas["logs_retention"] == 7);
    let used = fixture.get("/v1/usages").await.good()["usage"]["periods"].clone();
    let month = used.as_object().unwrap().values().next().unwrap();
    assert_eq!(
        month["apps"][0]["services"][0]["regions"]["fra"]["instances"]["nano"]["duration_seconds"],
        90
    );
    for (query, field) in [
        ("ending_time=9999-12-15T00:00:00Z", "ending_time"),
        (
            "starting_time=9999-12-01T00:00:00Z&ending_time=9999-12-15T00:00:00Z",
            "starting_time",
        ),
    ] {
        for list in ["/v1/usages", "/v1/usages/details"] {
            let refused = fixture.get(&format!("{list}?{query}")).await.bad(400);
            assert_eq!(refused["fields"][0]["field"], field, "{list} {query}");
        }
    }
    let details = fixture.get("/v1/usages/details").await.good();
    assert_eq!(
        (
            &details["count"],
            &details["usage_details"][0]["duration_seconds"]
        ),
        (&json!(1), &json!(90))
    );
}
