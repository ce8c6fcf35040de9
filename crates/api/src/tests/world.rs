//! One of everything, and every endpoint called with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use http::Method;
use serde_json::{Value, json};
use tram_site::{LogStream, Site as _};
use tram_store::intent::VolumeSeen;
use tram_types::Generation;

use super::{
    fixture::{Fixture, Reply, text, web},
    streams::spec_of,
};
use crate::{endpoint::Endpoint, resources::endpoints};

/// Ids of one of everything that the first organization has.
pub(super) struct World {
    pub(super) ids: BTreeMap<&'static str, String>,
}

impl World {
    pub(super) async fn new(fixture: &Fixture) -> Self {
        let app = fixture.app("shop").await;
        let service = fixture.service(&app, "web", "/").await;
        let instance = fixture.instance(&service).await;
        let site = &fixture.site;
        site.start(&spec_of(&instance), Generation(1)).await.unwrap();
        site.write_log(instance.id, LogStream::Stdout, "a line");
        let secret = json!({"name":"db","type":"SIMPLE","value":"v"});
        let secret = fixture.post("/v1/secrets", secret).await.good()["secret"]["id"].clone();
        let registry = json!({"name":"hub","type":"REGISTRY","private_registry":
            {"username":"u","password":"p","url":"r.example.org"}});
        let registry = fixture.post("/v1/secrets", registry).await.good()["secret"]["id"].clone();
        let domain = json!({"name":"shop.example.org","type":"CUSTOM"});
        let domain = fixture.post("/v1/domains", domain).await.good()["domain"]["id"].clone();
        let credential = json!({"name":"ci","type":"ORGANIZATION"});
        let credential = fixture.post("/v1/credentials", credential).await.good()["credential"]["id"].clone();
        let limit = json!({"tokens_per_month":1000});
        let limited = text(&credential);
        fixture
            .with(Method::PUT, &format!("/v1/model_limits/{limited}"), limit)
            .await
            .good();
        // Of a model in the engine's own image, as this installation has no store of models.
        let asked = json!({"app_id":app,"definition":{"name":"ask","type":"WEB","regions":["na"],
            "model":{"source":"/m","engine":"openai","image":"engine"},
            "ports":[{"port":80,"protocol":"http"}],"routes":[{"port":80,"path":"/ask"}],
            "instance_types":[{"type":"nano"}],"scalings":[{"min":1,"max":1}]}});
        fixture.post("/v1/services", asked).await.good();
        let route = json!({"targets":[{"model":"ask"}]});
        fixture
            .with(Method::PUT, "/v1/model_routes/assistant", route)
            .await
            .good();
        let project = fixture.post("/v1/projects", json!({"name":"p"})).await.good()["project"]["id"].clone();
        let volume = json!({"name":"data","region":"fra","max_size":1});
        let volume = fixture.post("/v1/volumes", volume).await.good()["volume"]["id"].clone();
        let spare = json!({"name":"spare","region":"fra","max_size":1});
        fixture.post("/v1/volumes", spare).await.good();
        for volume in fixture.api.store.volumes_unscoped().await.unwrap() {
            // As the controller does when the site has made it.
            let made = VolumeSeen {
                made_size: Some(1),
                ..VolumeSeen::default()
            };
            fixture
                .api
                .store
                .apply_volume(&volume, &made, Vec::new())
                .await
                .unwrap();
        }
        let snapshot = json!({"name":"before","parent_volume_id":volume});
        let snapshot = fixture.post("/v1/snapshots", snapshot).await.good()["snapshot"]["id"].clone();
        let kept = json!({"name":"kept","instance_id":instance.id.to_string(),"type":"INSTANCE_SNAPSHOT_TYPE_FILESYSTEM"});
        let kept =
            fixture.post("/v1/instance_snapshots", kept).await.good()["instance_snapshot"]["id"].clone();
        let store = &fixture.api.store;
        let taken = store
            .instance_snapshot(fixture.acme.organization.id, text(&kept).parse().unwrap())
            .await
            .unwrap();
        assert!(store.instance_snapshot_taken(&taken, 7 << 20).await.unwrap());
        let pool = json!({"name":"ready","size":1,"definition":web("member","/")});
        let pool = fixture.post("/v1/service_pools", pool).await.good()["service_pool"]["id"].clone();
        let claim = json!({"pool_id":pool,"request_id":"first"});
        let claim = fixture.post("/v1/claim", claim).await.good()["claim_id"].clone();
        let ids = BTreeMap::from([
            ("service_pools", text(&pool)),
            ("claims", text(&claim)),
            ("instance_snapshots", text(&kept)),
            ("volumes", text(&volume)),
            ("snapshots", text(&snapshot)),
            ("apps", app),
            ("services", text(&service["id"])),
            ("deployments", text(&service["latest_deployment_id"])),
            (
                "regional_deployments",
                instance.regional_deployment_id.to_string(),
            ),
            ("instances", instance.id.to_string()),
            ("secrets", text(&secret)),
            ("registry", text(&registry)),
            ("domains", text(&domain)),
            ("credentials", text(&credential)),
            ("model_limits", limited),
            ("model_routes", "assistant".to_owned()),
            ("projects", text(&project)),
            (
                "default_project",
                fixture.acme.organization.default_project_id.unwrap().to_string(),
            ),
            ("organizations", fixture.acme.organization.id.to_string()),
        ]);
        Self { ids }
    }

    /// The path of an endpoint with the ids of this world.
    pub(super) fn path(&self, endpoint: &Endpoint) -> String {
        let kind = match endpoint
            .path
            .trim_start_matches("/v1/")
            .split('/')
            .next()
            .unwrap()
        {
            "deployment" => "deployments",
            "quotas" => "organizations",
            other => other,
        };
        let fallback = "00000000-0000-4000-8000-000000000000".to_owned();
        let id = match endpoint.path {
            path if path.starts_with("/v1/catalog/regions") => "fra",
            path if path.starts_with("/v1/catalog/instances") => "nano",
            _ => self.ids.get(kind).unwrap_or(&fallback),
        };
        endpoint
            .path
            .split('/')
            .map(|part| if part.starts_with('{') { id } else { part })
            .collect::<Vec<_>>()
            .join("/")
    }
}

/// A query and a body with which an endpoint succeeds in this world.
fn input(world: &World, endpoint: &Endpoint) -> (String, Value) {
    let id = |kind: &str| world.ids[kind].as_str();
    let (query, body) = match endpoint.operation {
        "CreateApp" => ("", json!({"name":"another"})),
        "UpdateApp" | "UpdateApp2" => ("", json!({"name":"shop-two"})),
        "CreateService" => ("", json!({"app_id":id("apps"),"definition":web("api","/api")})),
        "UpdateService" => ("", json!({"definition":web("web","/v2")})),
        "UpdateService2" => ("", json!({"definition":{"env":[]}})),
        "UpdateServiceScaling" => ("", json!({"scalings":[{"instances":2}]})),
        "Autocomplete" => ("", json!({"definition":web("web","/")})),
        "Compose" => (
            "",
            json!({"app":{"name":"file"},"services":[{"definition":web("web","/")}]}),
        ),
        "CreateSecret" => ("", json!({"name":"more","type":"SIMPLE","value":"v"})),
        "UpdateSecret" | "UpdateSecret2" => ("", json!({"name":"db","value":"w"})),
        "CreatePersistentVolume" => ("", json!({"name":"more","region":"na","max_size":2})),
        "UpdatePersistentVolume" => ("", json!({"name":"renamed","max_size":3})),
        "CreateSnapshot" => ("", json!({"name":"after","parent_volume_id":id("volumes")})),
        "CreateInstanceSnapshot" => (
            "",
            json!({"name":"more","instance_id":id("instances"),"type":"INSTANCE_SNAPSHOT_TYPE_FILESYSTEM"}),
        ),
        "CreateServicePool" => ("", json!({"name":"more","size":1,"definition":web("member","/")})),
        "UpdateServicePool" => ("update_mask=size", json!({"size":2})),
        "Claim" => ("", json!({"pool_id":id("service_pools"),"request_id":"second"})),
        "UpdateSnapshot" => ("", json!({"name":"renamed"})),
        "CreateDomain" => ("", json!({"name":"more.example.org","type":"CUSTOM"})),
        "UpdateDomain" => ("", json!({"app_id":id("apps")})),
        "SetModelRoute" => (
            "",
            json!({"targets":[{"model":"ask","weight":2}],"fallbacks":["ask"]}),
        ),
        "SetModelLimit" => ("", json!({"requests_per_minute":60,"priority":"low"})),
        "CreateCredential" => (
            "",
            json!({"name":"more","type":"ORGANIZATION","role":"READ_ONLY"}),
        ),
        "UpdateCredential" | "UpdateCredential2" => ("", json!({"name":"renamed"})),
        "CreateProject" => ("", json!({"name":"more"})),
        "UpdateProject" | "UpdateProject2" => ("", json!({"name":"renamed"})),
        "UpdateOrganization" | "UpdateOrganization2" | "UpdateOrganizationName" => {
            ("", json!({"name":"acme"}))
        }
        "UpdateOrganizationDefaultProject" => ("", json!({"default_project_id":id("default_project")})),
        "UpdateOrganizationPlan" => ("", json!({"plan":"enterprise"})),
        "CreateAccessToken" => ("", json!({"validity":"60s"})),
        "VerifyDockerImage" => ("image=nginx", json!({})),
        "GetMetrics" => ("name=HTTP_THROUGHPUT&service_id=$services", json!({})),
        "QueryLogs" => ("service_id=$services", json!({})),
        // Without an upgrade both end by themselves.
        "ExecCommand" => ("id=$instances&body.command=ls", json!({})),
        "TailLogs" => ("instance_id=$instances&limit=1", json!({})),
        _ => ("", json!({})),
    };
    let query = query
        .replace("$services", id("services"))
        .replace("$instances", id("instances"));
    (query, body)
}

/// What has to come late, because it ends things.
fn rank(endpoint: &Endpoint) -> u8 {
    match endpoint.operation {
        "CancelDeployment" => 1,
        "PauseService" => 2,
        "ResumeService" => 3,
        "PauseApp" => 4,
        "ResumeApp" => 5,
        "DeleteServiceScaling" => 6,
        operation if operation.starts_with("Delete") => match operation {
            "DeleteApp" => 9,
            _ => 8,
        },
        "Logout" => 10,
        _ => 0,
    }
}

/// Endpoints that name an object in their query or their body.
const NAMING: [&str; 5] = [
    "CreateService",
    "QueryLogs",
    "GetMetrics",
    "ExecCommand",
    "TailLogs",
];

/// What upstream does not have.
const OURS: [&str; 10] = [
    "ListStoredModels",
    "VerifyInstanceSnapshot",
    "ListModelCatalog",
    "ListModelEngines",
    "ListModelLimits",
    "SetModelLimit",
    "DeleteModelLimit",
    "ListModelRoutes",
    "SetModelRoute",
    "DeleteModelRoute",
];

#[tokio::test]
async fn every_endpoint_succeeds_for_its_owner() {
    let fixture = Fixture::new().await;
    let world = World::new(&fixture).await;
    let mut all: Vec<Endpoint> = endpoints()
        .into_iter()
        .filter(|endpoint| endpoint.implemented)
        .collect();
    all.sort_by_key(rank);
    let mut replies = BTreeMap::new();
    for endpoint in all {
        if endpoint.operation == "CancelDeployment" {
            // The newest one, since older ones may be over.
            let newest = fixture
                .get(&format!("/v1/services/{}", world.ids["services"]))
                .await
                .good();
            let newest = text(&newest["service"]["latest_deployment_id"]);
            fixture
                .post(&format!("/v1/deployments/{newest}/cancel"), json!({}))
                .await
                .good();
            continue;
        }
        let (query, body) = input(&world, &endpoint);
        let path = format!("{}?{query}", world.path(&endpoint));
        // Profiles and settings are a user's.
        let token = Some(fixture.acme.user.as_str());
        let bytes = body.to_string().into_bytes();
        let reply: Reply = fixture.send(token, endpoint.method.clone(), &path, bytes).await;
        assert_eq!(reply.status.as_u16(), 200, "{endpoint:?} {path} {}", reply.body);
        assert_eq!(reply.headers["content-type"], "application/json", "{endpoint:?}");
        assert!(reply.headers.contains_key("x-request-id"), "{endpoint:?}");
        assert!(reply.body.is_object(), "{endpoint:?}");
        // What is ours alone the SDK has no model of.
        let message = endpoint
            .gives
            .as_ref()
            .filter(|_| !OURS.contains(&endpoint.operation));
        if let Some(message) = message {
            replies.insert(
                endpoint.operation,
                json!({"message": message.name, "body": reply.body}),
            );
        }
        if endpoint.operation.starts_with("Pause") {
            let pausing = fixture.get("/v1/services?statuses=PAUSING").await.good();
            for service in pausing["services"].as_array().unwrap() {
                fixture.paused(service).await;
            }
        }
    }
    let replies = serde_json::to_vec_pretty(&replies).unwrap();
    if let Some(path) = std::env::var_os("TRAM_API_REPLIES") {
        std::fs::write(path, &replies).unwrap();
    }
    read_with_the_sdk(&replies);
}

/// Has the models of the official SDK read every answer. `scripts/setup test` installs it.
fn read_with_the_sdk(replies: &[u8]) {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let environment = std::env::var_os("TRAM_VENV").map(PathBuf::from);
    let python = environment
        .or_else(|| cache.map(|cache| cache.join("tram/venv")))
        .map(|environment| environment.join("bin/python"))
        .filter(|python| python.exists());
    let Some(python) = python else {
        let why = "the SDK is not installed: run `scripts/setup test`";
        assert!(
            std::env::var_os("TRAM_TESTS_MAY_SKIP").is_some(),
            "{why} (or set TRAM_TESTS_MAY_SKIP=1)"
        );
        println!("skipped: {why}");
        return;
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, replies).unwrap();
    let script = Path::new("../../tests/openapi/sdk.py");
    let done = std::process::Command::new(python)
        .arg(script)
        .arg(file.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Objects of one organization are not there for another, whatever it calls.
#[tokio::test]
async fn nothing_of_one_organization_is_seen_or_touched_by_another() {
    let fixture = Fixture::new().await;
    let world = World::new(&fixture).await;
    let other = Some(fixture.other.owner.as_str());
    for endpoint in endpoints() {
        if endpoint.path.starts_with("/v1/catalog") {
            continue;
        }
        let (query, body) = match endpoint.operation {
            "UpdateDomain" | "UpdateSnapshot" => input(&world, &endpoint),
            operation if NAMING.contains(&operation) => input(&world, &endpoint),
            _ => (String::new(), json!({})),
        };
        let path = format!("{}?{query}", world.path(&endpoint));
        let bytes = body.to_string().into_bytes();
        let reply = fixture.send(other, endpoint.method.clone(), &path, bytes).await;
        // The name of a route is anybody's to give.
        let makes_its_own = endpoint.operation == "SetModelRoute";
        let names_an_object =
            !makes_its_own && (endpoint.path.contains('{') || NAMING.contains(&endpoint.operation));
        if names_an_object && endpoint.implemented {
            assert_eq!(reply.status.as_u16(), 404, "{endpoint:?} {}", reply.body);
        }
        if reply.status.as_u16() == 200 {
            let shown = reply.body.to_string();
            for (kind, id) in &world.ids {
                assert!(
                    !shown.contains(id.as_str()),
                    "{endpoint:?} shows a {kind}: {shown}"
                );
            }
        }
    }
    // Bodies with the ids of others are refused as if there were no such thing.
    let (app, project) = (&world.ids["apps"], &world.ids["projects"]);
    let registry = json!({"name":"xx","type":"WEB","docker":{"image":"nginx","image_registry_secret":"hub"},
        "env":[{"key":"A","secret":"db"}],"regions":["na"],"instance_types":[{"type":"nano"}]});
    let own_app = text(
        &fixture
            .send(
                other,
                Method::POST,
                "/v1/apps",
                json!({"name":"theirs"}).to_string().into_bytes(),
            )
            .await
            .good()["app"]["id"],
    );
    for (path, body, field) in [
        (
            "/v1/domains",
            json!({"name":"x.example.org","type":"CUSTOM","app_id":app}),
            "app_id",
        ),
        (
            "/v1/domains",
            json!({"name":"x.example.org","type":"CUSTOM","project_id":project}),
            "project_id",
        ),
        (
            "/v1/secrets",
            json!({"name":"x","type":"SIMPLE","value":"v","project_id":project}),
            "project_id",
        ),
        (
            "/v1/services",
            json!({"app_id":own_app,"project_id":project,"definition":web("xx","/")}),
            "project_id",
        ),
        (
            "/v1/services",
            json!({"app_id":own_app,"definition":registry}),
            "definition.docker.image_registry_secret",
        ),
        (
            "/v1/compose",
            json!({"app":{"name":"xxx","project_id":project},"services":[]}),
            "project_id",
        ),
        (
            "/v1/credentials",
            json!({"name":"xx","organization_id":world.ids["organizations"]}),
            "organization_id",
        ),
    ] {
        let bytes = body.to_string().into_bytes();
        let refused = fixture.send(other, Method::POST, path, bytes).await.bad(400);
        let fields = refused["fields"].as_array().unwrap();
        assert!(
            fields.iter().any(|found| found["field"] == field),
            "{path} {body} {refused}"
        );
    }
    // A composition by the name of another's app makes one of its own.
    let bytes = json!({"app":{"name":"shop"},"services":[{"definition":web("web","/")}]});
    let made = fixture
        .send(other, Method::POST, "/v1/compose", bytes.to_string().into_bytes())
        .await
        .good();
    assert_ne!(made["app"]["id"], json!(app));
    // Filters by the ids of others find nothing, or are not there.
    for path in [
        "/v1/services?app_id=$apps",
        "/v1/deployments?service_id=$services",
        "/v1/deployments?ids=$deployments",
        "/v1/regional_deployments?deployment_id=$deployments",
        "/v1/instances?service_id=$services&ids=$instances",
        "/v1/domains?app_ids=$apps",
        "/v1/secrets?ids=$secrets",
        "/v1/app_events?app_id=$apps",
        "/v1/service_events?service_id=$services",
        "/v1/instance_events?instance_ids=$instances",
        "/v1/credentials?organization_id=$organizations",
        "/v1/organization_members?organization_id=$organizations",
        "/v1/streams/logs/query?instance_id=$instances",
        "/v1/docker-helper/verify?image=private/app&secret_id=$registry",
    ] {
        let mut filled = path.to_owned();
        let kinds: BTreeSet<_> = world.ids.keys().rev().collect();
        for kind in kinds.into_iter().rev() {
            filled = filled.replace(&format!("${kind}"), &world.ids[*kind]);
        }
        let reply = fixture.send(other, Method::GET, &filled, Vec::new()).await;
        if reply.status.as_u16() == 200 {
            let is_empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
            assert!(
                reply.body.as_object().unwrap().values().all(is_empty),
                "{path} {}",
                reply.body
            );
        } else {
            reply.bad(404);
        }
    }
    // And everything is still there, unchanged.
    let service = fixture
        .get(&format!("/v1/services/{}", world.ids["services"]))
        .await
        .good();
    assert_eq!(service["service"]["status"], "STARTING");
    assert_eq!(service["service"]["version"], "1");
}

#[tokio::test]
async fn every_change_is_in_the_audit_feed() {
    let fixture = Fixture::new().await;
    let world = World::new(&fixture).await;
    fixture.get("/v1/apps").await.good();
    let reveal = format!("/v1/secrets/{}/reveal", world.ids["secrets"]);
    fixture.post(&reveal, json!({})).await.good();
    // A check is none, in whatever way it is asked for, and what has no checks cannot be hidden by asking for one.
    for check in ["dry_run=true", "dry_run=1", "dry_run=True"] {
        fixture
            .post(
                &format!("/v1/services?{check}"),
                json!({"definition": web("a1","/")}),
            )
            .await
            .good();
    }
    let hidden = json!({"name":"hidden","type":"SIMPLE","value":"v"});
    fixture.post("/v1/secrets?dry_run=true", hidden).await.good();
    let both = json!({"app_id":world.ids["apps"],"definition":web("both","/both")});
    fixture
        .post("/v1/services?dry_run=false&dry_run=true", both)
        .await
        .good();
    fixture.post("/v1/account/session", json!({})).await.good();
    fixture
        .with(Method::PUT, "/v1/account/refresh", json!({}))
        .await
        .good();
    let file = json!({"app":{"name":"file"},"services":[{"definition":web("part","/")}]});
    fixture.post("/v1/compose", file).await.good();
    let feed = fixture.get("/v1/activities").await.good()["activities"].clone();
    let entries = feed.as_array().unwrap();
    let mut verbs: Vec<String> = entries
        .iter()
        .map(|entry| format!("{} {}", text(&entry["object"]["type"]), text(&entry["verb"])))
        .collect();
    verbs.sort();
    let expected = [
        "app created",
        "app created",
        "claim created",
        "credential created",
        "domain created",
        "instance_snapshot created",
        "model_limit updated",
        "model_route updated",
        "project created",
        "secret created",
        "secret created",
        "secret created",
        "secret revealed",
        "service created",
        "service created",
        "service created",
        "service deployed",
        "service_pool created",
        "session created",
        "session refreshed",
        "snapshot created",
        "volume created",
        "volume created",
    ];
    assert_eq!(verbs, expected);
    let with = |verb: &str, kind: &str| {
        let mut matching = entries
            .iter()
            .filter(|entry| entry["verb"] == verb && entry["object"]["type"] == kind);
        matching.next().unwrap()["object"].clone()
    };
    assert_eq!(with("revealed", "secret")["id"], json!(world.ids["secrets"]));
    let services = entries
        .iter()
        .filter(|entry| entry["verb"] == "created" && entry["object"]["type"] == "service");
    let services: BTreeSet<String> = services.map(|entry| text(&entry["object"]["name"])).collect();
    assert_eq!(
        services,
        BTreeSet::from(["ask".to_owned(), "both".to_owned(), "web".to_owned()])
    );
    assert_eq!(with("deployed", "service")["name"], "part");
    assert_eq!(with("created", "session")["id"], "");
    assert!(
        !feed.to_string().contains("\"v\""),
        "a secret's value is in the feed"
    );
}

#[tokio::test]
async fn the_audit_feed_is_filtered_before_it_is_cut_into_pages() {
    let fixture = Fixture::new().await;
    World::new(&fixture).await;
    let user = Some(fixture.acme.user.as_str());
    let call = async |path: &str| fixture.send(user, Method::GET, path, Vec::new()).await.good();
    let kinds = |feed: &Value| -> Vec<String> {
        let entries = feed["activities"].as_array().unwrap().iter();
        entries.map(|entry| text(&entry["object"]["type"])).collect()
    };
    let page = call("/v1/activities?types=secret&types=project&limit=2").await;
    assert_eq!((kinds(&page).len(), &page["has_next"]), (2, &json!(true)));
    let rest = call("/v1/activities?types=secret&types=project&limit=2&offset=2").await;
    assert_eq!((kinds(&rest).len(), &rest["has_next"]), (1, &json!(false)));
    assert_eq!(
        kinds(&call("/v1/activities?types=sec%25").await),
        Vec::<String>::new()
    );
    // The account's own feed has what this user did, not what others of the organization did.
    assert_eq!(kinds(&call("/v1/account/activities").await), Vec::<String>::new());
    let body = json!({"name":"\"type\":\"secret\""}).to_string().into_bytes();
    fixture
        .send(user, Method::POST, "/v1/projects", body)
        .await
        .good();
    assert_eq!(kinds(&call("/v1/account/activities").await), ["project"]);
    assert_eq!(
        kinds(&call("/v1/activities?types=secret").await),
        ["secret", "secret"]
    );
}

#[tokio::test]
async fn an_allocation_is_looked_for_among_the_ids() {
    let fixture = Fixture::new().await;
    let app = fixture.app("shop").await;
    let service = fixture.service(&app, "web", "/").await;
    let one = fixture.instance(&service).await.id;
    let other = fixture.instance(&service).await.id;
    for (query, count) in [
        (format!("allocation_id={one}"), 1),
        (format!("allocation_id={one}&ids={one}&ids={other}"), 1),
        (format!("allocation_id={one}&ids={other}"), 0),
        (format!("ids={one}&ids={other}"), 2),
    ] {
        let found = fixture.get(&format!("/v1/instances?{query}")).await.good();
        assert_eq!(
            (&found["count"], found["instances"].as_array().unwrap().len()),
            (&json!(count), count),
            "{query}"
        );
    }
}
