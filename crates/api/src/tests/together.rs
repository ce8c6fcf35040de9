//! Changes that meet: at one moment, in one app, in one file. And what a dry run says of them.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::fixture::{Fixture, text, web};

/// How long something may take that waits for nobody.
const DEADLINE: Duration = Duration::from_secs(60);

async fn definition(fixture: &Fixture, service: &Value) -> Value {
    let path = format!("/v1/services/{}", text(&service["id"]));
    let service = fixture.get(&path).await.good()["service"].clone();
    let latest = format!("/v1/deployments/{}", text(&service["latest_deployment_id"]));
    fixture.get(&latest).await.good()["deployment"]["definition"].clone()
}

#[tokio::test]
async fn of_two_changes_at_once_neither_is_lost() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let path = format!("/v1/services/{}", text(&service["id"]));
    let redeploy = format!("{path}/redeploy");
    for round in 0..10 {
        let image = format!("nginx:{round}");
        let value = format!("round {round}");
        let of_image = json!({"definition":{"docker":{"image":image}}});
        let of_env = json!({"definition":{"env":[{"key":"A","value":value}]}});
        let (one, other, again) = tokio::join!(
            fixture.with(Method::PATCH, &path, of_image),
            fixture.with(Method::PATCH, &path, of_env),
            fixture.post(&redeploy, json!({})),
        );
        one.good();
        other.good();
        again.good();
        let found = definition(&fixture, &service).await;
        assert_eq!(found["docker"]["image"], json!(image));
        assert_eq!(found["env"][0]["value"], json!(value));
    }
}

#[tokio::test]
async fn of_two_services_at_once_one_gets_the_path() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let body = |name: &str| json!({"app_id":app,"definition":web(name, "/")});
    let (one, other) = tokio::join!(
        fixture.post("/v1/services", body("first")),
        fixture.post("/v1/services", body("second")),
    );
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 400]);
}

#[tokio::test]
async fn an_app_does_not_wait_for_another() {
    let fixture = Fixture::new().await;
    let busy = fixture.app("busy").await;
    let app = fixture.app("shop").await;
    let _turn = fixture.api.turns.of(busy.parse().unwrap()).await;
    let service = fixture.service(&app, "web", "/");
    tokio::time::timeout(DEADLINE, service).await.unwrap();
    let composed = json!({"app":{"name":"new"},"services":[{"definition":web("web","/")}]});
    let composed = fixture.post("/v1/compose", composed);
    tokio::time::timeout(DEADLINE, composed).await.unwrap().good();
}

#[tokio::test]
async fn a_dry_run_refuses_what_the_call_would_refuse() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    fixture.service(&app, "web", "/").await;
    let api = fixture.service(&app, "api", "/api").await;
    let taken_path = json!({"app_id":app,"definition":web("more","/api/")});
    let taken_name = json!({"app_id":app,"definition":web("api","/more")});
    let no_id = json!({"app_id":"shop","definition":web("more","/more")});
    for (body, field) in [
        (taken_path, "definition.routes.0.path"),
        (taken_name, "name"),
        (no_id, "app_id"),
    ] {
        let checked = fixture
            .post("/v1/services?dry_run=true", body.clone())
            .await
            .bad(400);
        assert_eq!(checked["fields"][0]["field"], field);
        let called = fixture.post("/v1/services", body).await.bad(400);
        assert_eq!(checked, called);
    }
    let path = format!("/v1/services/{}", text(&api["id"]));
    for (body, field) in [
        (json!({"definition":web("web","/api")}), "name"),
        (json!({"definition":web("api","/")}), "definition.routes.0.path"),
    ] {
        let dry = format!("{path}?dry_run=true");
        let checked = fixture.with(Method::PUT, &dry, body.clone()).await.bad(400);
        assert_eq!(checked["fields"][0]["field"], field);
        let called = fixture.with(Method::PUT, &path, body).await.bad(400);
        assert_eq!(checked, called);
    }
    let free = json!({"app_id":app,"definition":web("more","/more")});
    fixture.post("/v1/services?dry_run=true", free).await.good();
    assert_eq!(fixture.get("/v1/services").await.good()["count"], 2);
}

#[tokio::test]
async fn a_file_moves_a_path_from_one_service_to_another() {
    let fixture = Fixture::new().await;
    let file = |first: &str, second: &str| {
        json!({"app":{"name":"shop"},"services":[
            {"definition":web("web", first)},{"definition":web("api", second)}]})
    };
    let made = fixture.post("/v1/compose", file("/", "/api")).await.good();
    fixture.post("/v1/compose", file("/api", "/")).await.good();
    let moved = definition(&fixture, &made["services"][0]).await;
    assert_eq!(moved["routes"][0]["path"], "/api");
    // A service that the file does not name keeps its paths.
    let app = text(&made["app"]["id"]);
    fixture.service(&app, "docs", "/docs").await;
    let refused = fixture.post("/v1/compose", file("/docs", "/")).await.bad(400);
    assert_eq!(
        refused["fields"][0]["field"],
        "services.0.definition.routes.0.path"
    );
}

#[tokio::test]
async fn a_file_changes_when_its_app_goes() {
    let fixture = Fixture::new().await;
    let file = |life_cycle: Value| json!({"app":{"name":"shop","life_cycle":life_cycle}});
    for (given, expected) in [
        (json!({"delete_when_empty":false}), false),
        (json!({"delete_when_empty":true}), true),
        (Value::Null, true),
        (json!({"delete_when_empty":false}), false),
    ] {
        let app = fixture.post("/v1/compose", file(given.clone())).await.good()["app"].clone();
        assert_eq!(app["life_cycle"]["delete_when_empty"], expected, "{given}");
    }
}

#[tokio::test]
async fn a_file_says_in_which_project_each_service_is() {
    let fixture = Fixture::new().await;
    let project = fixture.post("/v1/projects", json!({"name":"p"})).await.good()["project"]["id"].clone();
    let secret = json!({"name":"own","type":"SIMPLE","value":"v","project_id":project});
    fixture.post("/v1/secrets", secret).await.good();
    let file = |project: Value, image: &str| {
        let mut definition = web("web", "/");
        definition["env"] = json!([{"key":"A","value":"{{ secret.own }}"}]);
        definition["docker"]["image"] = json!(image);
        json!({"app":{"name":"shop"},"services":[
            {"definition":definition,"project_id":project},{"definition":web("api","/api")}]})
    };
    let made = fixture
        .post("/v1/compose", file(project.clone(), "nginx"))
        .await
        .good();
    assert_eq!(made["services"][0]["project_id"], project);
    assert_ne!(made["services"][1]["project_id"], project);
    // Later the service's project is known, and it stays there.
    fixture
        .post("/v1/compose", file(Value::Null, "nginx:2"))
        .await
        .good();
    let elsewhere = made["services"][1]["project_id"].clone();
    for unfit in [elsewhere, json!("nothing")] {
        let refused = fixture.post("/v1/compose", file(unfit, "nginx:3")).await.bad(400);
        assert_eq!(refused["fields"][0]["field"], "services.0.project_id");
    }
}

#[tokio::test]
async fn what_would_not_be_kept_is_refused() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let account = json!({"app_id":app,"definition":web("web","/"),"service_account_id":"a"});
    let refused = fixture.post("/v1/services", account).await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "service_account_id");
    let mut alone = web("web", "/");
    alone["network_policy"] = json!({"mesh":{"scope":"MESH_SCOPE_APP"}});
    let refused = fixture
        .post("/v1/services", json!({"app_id":app,"definition":alone}))
        .await
        .bad(400);
    assert_eq!(
        refused["fields"][0]["field"],
        "definition.network_policy.mesh.scope"
    );
    let mut usual = web("web", "/");
    usual["network_policy"] = json!({"mesh":{"scope":"MESH_SCOPE_UNSPECIFIED","name":""},
        "egress":{"mode":"EGRESS_POLICY_MODE_DENY_ALL","allow_list":null}});
    fixture
        .post("/v1/services", json!({"app_id":app,"definition":usual}))
        .await
        .good();
}

#[tokio::test]
async fn a_secret_must_be_of_the_type_that_its_place_needs() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let registry = json!({"name":"hub","type":"REGISTRY","private_registry":
        {"username":"u","password":"p","url":"r.example.org"}});
    fixture.post("/v1/secrets", registry).await.good();
    let with = |env: Value| {
        let mut definition = web("web", "/");
        definition["env"] = json!([env]);
        json!({"app_id":app,"definition":definition})
    };
    for (env, field) in [
        (
            json!({"key":"A","value":"{{ secret.hub }}"}),
            "definition.env.0.value",
        ),
        (json!({"key":"A","secret":"hub"}), "definition.env.0.secret"),
    ] {
        let refused = fixture.post("/v1/services", with(env)).await.bad(400);
        assert_eq!(refused["fields"][0]["field"], field);
    }
    // The project's own secret is meant where the organization has one of the same name.
    let project = fixture.acme.organization.default_project_id.unwrap().to_string();
    let own = json!({"name":"hub","type":"SIMPLE","value":"v","project_id":project});
    fixture.post("/v1/secrets", own).await.good();
    let env = json!({"key":"A","value":"{{ secret.hub }}"});
    fixture.post("/v1/services", with(env)).await.good();
}
