//! Apps, services, deployments: what a client sees of its intents.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::fixture::{Fixture, text, web};

#[tokio::test]
async fn an_app_gets_a_domain_and_its_name_is_taken() {
    let fixture = Fixture::new().await;
    let app = fixture
        .post(
            "/v1/apps",
            json!({"name":"shop","life_cycle":{"delete_when_empty":true}}),
        )
        .await
        .good()["app"]
        .clone();
    let domain = &app["domains"][0];
    assert!(
        text(&domain["name"]).starts_with("shop-acme-") && text(&domain["name"]).ends_with(".tram.localhost")
    );
    assert_eq!(domain["type"], "AUTOASSIGNED");
    assert_eq!(domain["cloudflare"], json!({}));
    assert_eq!(domain["status"], "ACTIVE");
    assert_eq!(app["status"], "HEALTHY");
    assert_eq!(app["version"], "1");
    assert_eq!(app["life_cycle"]["delete_when_empty"], true);
    let refused = fixture.post("/v1/apps", json!({"name":"shop"})).await.bad(400);
    assert_eq!(
        refused["fields"],
        json!([{"field":"name","description":"already exists"}])
    );
    let listed = fixture.get("/v1/apps?name=shop&limit=&offset=").await.good();
    assert_eq!(
        (&listed["count"], &listed["has_next"]),
        (&json!(1), &json!(false))
    );
    assert_eq!(listed["apps"][0]["domains"][0]["name"], domain["name"]);
}

#[tokio::test]
async fn a_domain_on_another_port_says_its_url() {
    let mut fixture = Fixture::new().await;
    let path = format!("/v1/apps/{}", fixture.app("shop").await);
    let app = fixture.get(&path).await.good()["app"].clone();
    assert!(app["domains"][0].get("url").is_none());
    let settings = crate::Settings {
        https_port: 8443,
        ..(*fixture.api.settings).clone()
    };
    fixture.api.settings = std::sync::Arc::new(settings);
    fixture.router = crate::router::build(fixture.api.clone(), crate::resources::endpoints());
    let name = text(&app["domains"][0]["name"]);
    let url = json!(format!("https://{name}:8443"));
    let shown = fixture.get(&path).await.good();
    assert_eq!(shown["app"]["domains"][0]["url"], url);
    let listed = fixture.get("/v1/domains").await.good();
    assert_eq!(listed["domains"][0]["url"], url);
}

#[tokio::test]
async fn a_service_comes_with_its_deployment_and_gives_back_what_came_in() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    assert_eq!(service["status"], "STARTING");
    assert_eq!(service["active_deployment_id"], "");
    let id = text(&service["latest_deployment_id"]);
    let deployment = fixture.get(&format!("/v1/deployments/{id}")).await.good()["deployment"].clone();
    let definition = &deployment["definition"];
    assert_eq!(definition["name"], "web");
    assert_eq!(definition["regions"], json!(["na"]));
    assert_eq!(
        definition["env"],
        json!([{"scopes":[],"key":"GREETING","value":"{{ KOYEB_APP_NAME }}"}])
    );
    assert!(definition.get("git").is_none());
    assert_eq!(deployment["status"], "PENDING");
    assert_eq!(deployment["version"], "1");
    assert_eq!(deployment["role"], "UPCOMING");
    assert!(deployment["metadata"].get("sandbox").is_none());
    let regional = fixture
        .get(&format!("/v1/regional_deployments?deployment_id={id}"))
        .await
        .good();
    assert_eq!(regional["regional_deployments"][0]["region"], "fra");
    assert_eq!(regional["regional_deployments"][0]["definition"]["region"], "fra");
    let newest = format!("/v1/deployments?service_id={}&limit=1", text(&service["id"]));
    assert_eq!(
        fixture.get(&newest).await.good()["deployments"][0]["id"],
        json!(id)
    );
}

#[tokio::test]
async fn two_services_of_an_app_cannot_have_one_path() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    fixture.service(&app, "web", "/").await;
    let refused = fixture
        .post("/v1/services", json!({"app_id":app,"definition":web("api","/")}))
        .await
        .bad(400);
    assert_eq!(refused["fields"][0]["field"], "definition.routes.0.path");
    let api = fixture.service(&app, "api", "/api").await;
    let update = json!({"definition": web("api", "/")});
    let refused = fixture
        .with(Method::PUT, &format!("/v1/services/{}", text(&api["id"])), update)
        .await
        .bad(400);
    assert_eq!(refused["fields"][0]["field"], "definition.routes.0.path");
    let twice = fixture
        .post("/v1/services", json!({"app_id":app,"definition":web("api","/b")}))
        .await
        .bad(400);
    assert_eq!(
        twice["fields"],
        json!([{"field":"name","description":"already exists"}])
    );
}

#[tokio::test]
async fn only_a_changed_definition_makes_a_deployment() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let path = format!("/v1/services/{}", text(&service["id"]));
    let first = service["latest_deployment_id"].clone();
    let life_cycle = json!({"definition": web("web","/"), "life_cycle": {"delete_after_create": 60}});
    let same = fixture.with(Method::PUT, &path, life_cycle).await.good()["service"].clone();
    assert_eq!(same["latest_deployment_id"], first);
    assert_eq!(same["life_cycle"]["delete_after_create"], 60);
    let mut changed = web("web", "/");
    changed["docker"]["image"] = json!("nginx:2");
    let checked = fixture
        .with(
            Method::PUT,
            &format!("{path}?dry_run=true"),
            json!({"definition":changed}),
        )
        .await;
    assert_eq!(checked.good()["service"]["latest_deployment_id"], first);
    let second = fixture
        .with(Method::PUT, &path, json!({"definition":changed}))
        .await
        .good()["service"]
        .clone();
    assert_ne!(second["latest_deployment_id"], first);
    assert_eq!(second["life_cycle"]["delete_after_create"], 60);
    let patched = json!({"definition":{"env":[{"key":"A","value":"1"}]}});
    let third = fixture.with(Method::PATCH, &path, patched).await.good()["service"].clone();
    let latest = format!("/v1/deployments/{}", text(&third["latest_deployment_id"]));
    let latest = fixture.get(&latest).await.good()["deployment"].clone();
    assert_eq!(latest["definition"]["docker"]["image"], "nginx:2");
    assert_eq!(latest["definition"]["env"][0]["key"], "A");
    assert_eq!(
        (&latest["version"], &latest["parent_id"]),
        (&json!("3"), &second["latest_deployment_id"])
    );
    let stashed = json!({"definition": web("web","/other"), "save_only": true});
    let fourth = fixture.with(Method::PUT, &path, stashed).await.good()["service"].clone();
    let stashed = format!("/v1/deployments/{}", text(&fourth["latest_deployment_id"]));
    assert_eq!(
        fixture.get(&stashed).await.good()["deployment"]["status"],
        "STASHED"
    );
}

#[tokio::test]
async fn a_service_pauses_resumes_redeploys_and_goes() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let path = format!("/v1/services/{}", text(&service["id"]));
    let early = fixture.post(&format!("{path}/resume"), json!({})).await.bad(400);
    assert_eq!(early["code"], "failed_precondition");
    assert_eq!(
        fixture.post(&format!("{path}/pause"), json!({})).await.good(),
        json!({})
    );
    assert_eq!(fixture.get(&path).await.good()["service"]["status"], "PAUSING");
    fixture
        .post(&format!("{path}/redeploy"), json!({}))
        .await
        .bad(400);
    fixture.paused(&service).await;
    fixture
        .post(
            &format!("{path}/resume?skip_build=false&use_cache=true"),
            json!({}),
        )
        .await
        .good();
    let resumed = fixture.get(&path).await.good()["service"].clone();
    assert_eq!(resumed["status"], "RESUMING");
    let latest = format!("/v1/deployments/{}", text(&resumed["latest_deployment_id"]));
    let latest = fixture.get(&latest).await.good()["deployment"].clone();
    assert_eq!(latest["metadata"]["trigger"]["type"], "RESUME");
    let again = fixture
        .post(&format!("{path}/redeploy"), json!({"use_cache":true}))
        .await
        .good();
    assert_eq!(again["deployment"]["version"], "3");
    assert_eq!(again["deployment"]["deployment_group"], "prod");
    let canary = json!({"deployment_group":"canary"});
    let again = fixture.post(&format!("{path}/redeploy"), canary).await.good();
    assert_eq!(again["deployment"]["deployment_group"], "canary");
    assert_eq!(
        again["deployment"]["definition"]["strategy"]["type"],
        "DEPLOYMENT_STRATEGY_TYPE_CANARY"
    );
    let other = json!({"deployment_group":"blue"});
    let refused = fixture.post(&format!("{path}/redeploy"), other).await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "deployment_group", "{refused}");
    let cancel = format!("/v1/deployments/{}/cancel", text(&again["deployment"]["id"]));
    fixture.post(&cancel, json!({})).await.good();
    assert_eq!(
        fixture.with(Method::DELETE, &path, json!({})).await.good(),
        json!({})
    );
    assert_eq!(fixture.get(&path).await.good()["service"]["status"], "DELETING");
    let late = json!({"definition": web("web", "/late")});
    fixture.with(Method::PUT, &path, late).await.bad(400);
}

#[tokio::test]
async fn an_app_pauses_and_resumes_with_its_services() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let path = format!("/v1/services/{}", text(&service["id"]));
    fixture
        .post(&format!("/v1/apps/{app}/pause"), json!({}))
        .await
        .good();
    assert_eq!(fixture.get(&path).await.good()["service"]["status"], "PAUSING");
    assert_eq!(
        fixture.get(&format!("/v1/apps/{app}")).await.good()["app"]["status"],
        "PAUSING"
    );
    fixture.paused(&service).await;
    fixture
        .post(&format!("/v1/apps/{app}/resume"), json!({}))
        .await
        .good();
    assert_eq!(fixture.get(&path).await.good()["service"]["status"], "RESUMING");
    fixture
        .with(Method::DELETE, &format!("/v1/apps/{app}"), json!({}))
        .await
        .good();
    assert_eq!(fixture.get(&path).await.good()["service"]["status"], "DELETING");
}

#[tokio::test]
async fn scaling_by_hand_is_kept_and_ended() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let path = format!("/v1/services/{}/scale", text(&service["id"]));
    let wanted = json!({"scalings":[{"scopes":["region:na"],"instances":3}]});
    assert_eq!(
        fixture.with(Method::PUT, &path, wanted.clone()).await.good(),
        json!({})
    );
    assert_eq!(fixture.get(&path).await.good(), wanted);
    let refused = json!({"scalings":[{"scopes":["region:mars"],"instances":99}]});
    let refused = fixture.with(Method::PUT, &path, refused).await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "scalings.0.instances");
    assert_eq!(refused["fields"][1]["field"], "scalings.0.scopes.0");
    let many = json!({"scalings":[{"scopes":vec!["region:na"; 501],"instances":1}]});
    let refused = fixture.with(Method::PUT, &path, many).await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "scalings.0.scopes");
    fixture.with(Method::DELETE, &path, json!({})).await.good();
    assert_eq!(fixture.get(&path).await.good(), json!({"scalings":[]}));
}

fn sandbox() -> Value {
    json!({
        "name":"box", "type":"SANDBOX", "docker":{"image":"koyeb/sandbox","privileged":false},
        "env":[{"key":"SANDBOX_SECRET","value":"s"}],
        "ports":[{"port":3030,"protocol":"http"},{"port":3031,"protocol":"http"}],
        "proxy_ports":[{"port":3031,"protocol":"tcp"}],
        "routes":[{"port":3030,"path":"/koyeb-sandbox/"},{"port":3031,"path":"/"}],
        "instance_types":[{"type":"micro"}], "regions":["na"], "mesh":"DEPLOYMENT_MESH_AUTO",
        "scalings":[{"min":0,"max":1,"targets":[{"sleep_idle_delay":{"deep_sleep_value":300}}]}],
    })
}

#[tokio::test]
async fn a_sandbox_knows_at_once_how_it_is_reached_and_keeps_its_key() {
    let fixture = Fixture::new().await;
    let app = fixture.app("sandbox-app-box-1790000000").await;
    let body = json!({"app_id":app,"name":"box","definition":sandbox(),
        "life_cycle":{"delete_after_create":0,"delete_after_sleep":0}});
    let service = fixture.post("/v1/services", body).await.good()["service"].clone();
    let latest = |service: &Value| format!("/v1/deployments/{}", text(&service["latest_deployment_id"]));
    let deployment = fixture.get(&latest(&service)).await.good()["deployment"].clone();
    let metadata = &deployment["metadata"];
    assert_eq!(
        metadata["sandbox"]["public_url"],
        "http://sandboxes.localhost:8080"
    );
    let key = text(&metadata["sandbox"]["routing_key"]);
    assert_eq!(key.len(), 32);
    let proxy = &metadata["proxy_ports"][0];
    assert_eq!(
        (&proxy["host"], &proxy["port"]),
        (&json!("proxy.localhost"), &json!(3031))
    );
    assert!((20_000..=20_009).contains(&proxy["public_port"].as_u64().unwrap()));
    let mut changed = sandbox();
    changed["network_policy"] = json!({"egress":{"mode":"EGRESS_POLICY_MODE_DENY_ALL"}});
    let path = format!("/v1/services/{}", text(&service["id"]));
    let updated = fixture
        .with(Method::PUT, &path, json!({"definition":changed}))
        .await
        .good()["service"]
        .clone();
    assert_ne!(updated["latest_deployment_id"], service["latest_deployment_id"]);
    let second = fixture.get(&latest(&updated)).await.good()["deployment"].clone();
    assert_eq!(second["metadata"]["sandbox"]["routing_key"], json!(key));
    assert_eq!(second["metadata"]["proxy_ports"], metadata["proxy_ports"]);
    // Several sandboxes may share an app, although all of them lead to `/`.
    let mut twin = sandbox();
    twin["name"] = json!("twin");
    fixture
        .post("/v1/services", json!({"app_id":app,"definition":twin}))
        .await
        .good();
}

#[tokio::test]
async fn a_dry_run_checks_without_an_app_and_makes_nothing() {
    let fixture = Fixture::new().await;
    let unknown = uuid::Uuid::new_v4().to_string();
    let body = json!({"app_id":unknown,"definition":web("web","/")});
    fixture
        .post("/v1/services?dry_run=true", body.clone())
        .await
        .good();
    fixture.post("/v1/services", body).await.bad(404);
    let mut broken = web("web", "/");
    broken["ports"][0]["port"] = json!(0);
    let refused = fixture
        .post(
            "/v1/services?dry_run=true",
            json!({"app_id":unknown,"definition":broken}),
        )
        .await;
    assert_eq!(refused.bad(400)["fields"][0]["field"], "definition.ports.0.port");
    assert_eq!(fixture.get("/v1/services").await.good()["count"], 0);
}

#[tokio::test]
async fn unknown_members_are_named_in_a_warning() {
    let fixture = Fixture::new().await;
    let reply = fixture
        .post("/v1/apps", json!({"name":"shop","colour":"red"}))
        .await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["x-tram-warning"], "ignored unknown members: colour");
}

#[tokio::test]
async fn instances_are_shown_with_their_deployment() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let instance = fixture.instance(&service).await;
    let listed = format!(
        "/v1/instances?service_id={}&statuses=HEALTHY&statuses=STARTING&order=&limit=1",
        text(&service["id"])
    );
    let listed = fixture.get(&listed).await.good();
    assert_eq!((&listed["count"], &listed["order"]), (&json!(1), &json!("desc")));
    assert_eq!(
        listed["instances"][0]["xyz_deployment_id"],
        service["latest_deployment_id"]
    );
    let one = fixture
        .get(&format!("/v1/instances/{}", instance.id))
        .await
        .good();
    assert_eq!(one["instance"]["region"], "fra");
    let scaling = format!(
        "/v1/deployment/{}/scaling?region=na",
        text(&service["latest_deployment_id"])
    );
    let scaling = fixture.get(&scaling).await.good();
    assert_eq!(
        scaling["replicas"][0]["instances"][0]["id"],
        json!(instance.id.to_string())
    );
    assert_eq!(
        fixture.get("/v1/instances?statuses=ERROR").await.good()["count"],
        0
    );
}

#[tokio::test]
async fn a_composition_makes_and_then_updates() {
    let fixture = Fixture::new().await;
    let file = |image: &str| {
        let mut definition = web("web", "/");
        definition["docker"]["image"] = json!(image);
        json!({"app":{"name":"shop"},"services":[{"definition":definition},{"definition":web("api","/api")}]})
    };
    let first = fixture.post("/v1/compose", file("nginx")).await.good();
    assert_eq!(first["services"].as_array().unwrap().len(), 2);
    assert_eq!(first["app"]["domains"].as_array().unwrap().len(), 1);
    fixture.healthy(&first["services"][1]).await;
    let second = fixture.post("/v1/compose", file("nginx:2")).await.good();
    assert_eq!(second["app"]["id"], first["app"]["id"]);
    assert_eq!(second["services"][0]["id"], first["services"][0]["id"]);
    assert_ne!(
        second["services"][0]["latest_deployment_id"],
        first["services"][0]["latest_deployment_id"]
    );
    // What is healthy and stays the same is left alone.
    assert_eq!(
        second["services"][1]["latest_deployment_id"],
        first["services"][1]["latest_deployment_id"]
    );
    let clash =
        json!({"app":{"name":"new"},"services":[{"definition":web("a1","/")},{"definition":web("b1","/")}]});
    let refused = fixture.post("/v1/compose", clash).await.bad(400);
    assert_eq!(refused["fields"][0]["field"], "services.1.definition.routes");
    assert_eq!(fixture.get("/v1/apps?name=new").await.good()["count"], 0);
}

#[tokio::test]
async fn what_cannot_be_built_yet_says_so() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    for source in [
        json!({"git":{"repository":"github.com/a/b"}}),
        json!({"archive":{"id":"x"}}),
        json!({"database":{"neon_postgres":{"pg_version":16}}}),
    ] {
        let mut definition = source.clone();
        definition["name"] = json!("web");
        definition["type"] = json!("WEB");
        definition["regions"] = json!(["fra"]);
        let refused = fixture
            .post("/v1/services", json!({"app_id":app,"definition":definition}))
            .await
            .bad(501);
        assert_eq!(refused["code"], "not_implemented", "{source}");
    }
}

#[tokio::test]
async fn why_there_are_so_many_instances_is_told() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let scaling = format!(
        "/v1/deployment/{}/scaling",
        text(&service["latest_deployment_id"])
    );
    let told = fixture.get(&scaling).await.good()["decisions"].clone();
    let first = &told[0];
    assert_eq!(
        (
            &first["region"],
            &first["wanted"],
            &first["reason"],
            &first["message"]
        ),
        (
            &json!("fra"),
            &json!(1),
            &json!("fixed"),
            &json!("stays at 1: fixed by the definition")
        )
    );
    let by_hand = format!("/v1/services/{}/scale", text(&service["id"]));
    let three = json!({"scalings": [{"scopes": ["region:na"], "instances": 3}]});
    fixture.with(Method::PUT, &by_hand, three).await.good();
    let told = fixture.get(&scaling).await.good()["decisions"].clone();
    assert_eq!(
        (&told[0]["wanted"], &told[0]["reason"], &told[0]["message"]),
        (&json!(3), &json!("manual"), &json!("stays at 3: set by hand"))
    );
    let elsewhere = fixture.get(&format!("{scaling}?region=elsewhere")).await.good();
    assert_eq!(elsewhere["decisions"], json!([]));
}
