//! Bad input: what a client is told, word by word, and that nothing it sends breaks us.

use http::{Method, StatusCode};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

use super::{
    fixture::{Fixture, web},
    world::World,
};

/// Requests that are wrong in one way each.
const TABLE: &[(&str, &str, &str)] = &[
    ("POST", "/v1/apps", "{"),
    ("POST", "/v1/apps", "[]"),
    ("POST", "/v1/apps", r#"{"name":1}"#),
    ("POST", "/v1/apps", r#"{"name":"a"}"#),
    ("POST", "/v1/apps", r#"{"name":"Shop"}"#),
    ("POST", "/v1/apps", r#"{"name":"shop"}"#),
    (
        "POST",
        "/v1/apps",
        r#"{"name":"shop-two","life_cycle":{"delete_when_empty":"yes"}}"#,
    ),
    ("GET", "/v1/apps?limit=x&offset=-1", ""),
    ("GET", "/v1/apps?limit=5000", ""),
    ("GET", "/v1/apps?ids=7", ""),
    ("GET", "/v1/apps/not-an-id", ""),
    ("GET", "/v1/services?types=WEBB", ""),
    ("GET", "/v1/services?statuses=HEALTHY&statuses=FINE", ""),
    ("GET", "/v1/instances?order=sideways", ""),
    ("POST", "/v1/services", "{}"),
    ("POST", "/v1/services", r#"{"definition":{}}"#),
    ("POST", "/v1/services", r#"{"app_id":"x","definition":$WEB}"#),
    (
        "POST",
        "/v1/services",
        r#"{"app_id":"$APP","definition":$WEB,"life_cycle":{"delete_after_create":-1}}"#,
    ),
    (
        "POST",
        "/v1/services",
        r#"{"app_id":"$APP","definition":{"type":"WEB","env":[{"key":1}]}}"#,
    ),
    (
        "POST",
        "/v1/services",
        r#"{"app_id":"$APP","definition":{"type":"JOB"}}"#,
    ),
    (
        "POST",
        "/v1/services",
        r#"{"app_id":"$APP","definition":{"regions":"fra"}}"#,
    ),
    (
        "POST",
        "/v1/services",
        r#"{"app_id":"$APP","instance_snapshot_id":"s"}"#,
    ),
    ("POST", "/v1/compose", r#"{"services":[]}"#),
    ("POST", "/v1/compose", r#"{"app":{"name":"x y"},"services":[]}"#),
    (
        "POST",
        "/v1/compose",
        r#"{"app":{"name":"file"},"services":[{"definition":{"name":"web","type":"WEB"}}]}"#,
    ),
    ("POST", "/v1/secrets", "{}"),
    (
        "POST",
        "/v1/secrets",
        r#"{"name":"a b","type":"SIMPLE","value":"v"}"#,
    ),
    (
        "POST",
        "/v1/secrets",
        r#"{"name":"reg","type":"REGISTRY","value":"v"}"#,
    ),
    (
        "POST",
        "/v1/secrets",
        r#"{"name":"reg","type":"REGISTRY","github_registry":{"username":"","password":"p"}}"#,
    ),
    (
        "POST",
        "/v1/secrets",
        r#"{"name":"man","type":"MANAGED","value":"v"}"#,
    ),
    (
        "POST",
        "/v1/secrets",
        r#"{"name":"db","type":"SIMPLE","value":"v"}"#,
    ),
    ("POST", "/v1/domains", r#"{"name":"localhost"}"#),
    ("POST", "/v1/domains", r#"{"name":"a.tram.localhost"}"#),
    (
        "POST",
        "/v1/domains",
        r#"{"name":"a.example.org","app_id":"00000000-0000-4000-8000-000000000000"}"#,
    ),
    ("DELETE", "/v1/domains/$AUTODOMAIN", ""),
    ("PATCH", "/v1/domains/$AUTODOMAIN", r#"{"app_id":""}"#),
    ("PATCH", "/v1/domains/$AUTODOMAIN", r#"{"subdomain":"-"}"#),
    (
        "POST",
        "/v1/credentials",
        r#"{"type":"USER","role":"KING","expires_at":"2000-01-01T00:00:00Z"}"#,
    ),
    ("POST", "/v1/projects", r#"{"name":""}"#),
    ("POST", "/v1/projects", r#"{"name":"p"}"#),
    (
        "PUT",
        "/v1/organizations/$ORGANIZATION/name",
        r#"{"name":"Not a slug"}"#,
    ),
    (
        "POST",
        "/v1/organizations/$ORGANIZATION/access_token",
        r#"{"validity":"for ever"}"#,
    ),
    ("GET", "/v1/streams/logs/query", ""),
    (
        "GET",
        "/v1/streams/logs/query?service_id=$SERVICE&regex=(&text=x",
        "",
    ),
    ("GET", "/v1/streams/logs/query?service_id=$SERVICE&regex=(", ""),
    ("GET", "/v1/streams/logs/query?service_id=$SERVICE&limit=9999", ""),
    ("GET", "/v1/streams/metrics", ""),
    (
        "GET",
        "/v1/streams/metrics?name=CPU_TOTAL_PERCENT&service_id=$SERVICE&step=1y",
        "",
    ),
    ("GET", "/v1/streams/instances/exec", ""),
    ("GET", "/v1/docker-helper/verify", ""),
    ("POST", "/v1/volumes", "{}"),
    ("GET", "/v1/subscriptions/1", ""),
];

/// The answers to the table, one after the other. `TRAM_UPDATE_SNAPSHOTS=1` writes them anew.
#[tokio::test]
async fn each_fault_is_told() {
    let fixture = Fixture::new().await;
    let world = World::new(&fixture).await;
    let app = fixture
        .get(&format!("/v1/apps/{}", world.ids["apps"]))
        .await
        .good();
    let fill = |text: &str| {
        text.replace("$WEB", &web("more", "/more").to_string())
            .replace("$APP", &world.ids["apps"])
            .replace("$SERVICE", &world.ids["services"])
            .replace("$ORGANIZATION", &world.ids["organizations"])
            .replace("$AUTODOMAIN", app["app"]["domains"][0]["id"].as_str().unwrap())
    };
    let mut answers = String::new();
    for (method, path, body) in TABLE {
        let method: Method = method.parse().unwrap();
        let token = Some(fixture.acme.owner.as_str());
        let reply = fixture
            .send(token, method.clone(), &fill(path), fill(body).into_bytes())
            .await;
        assert!(
            reply.status.as_u16() >= 400,
            "{method} {path} {body} {}",
            reply.body
        );
        let mut answer = serde_json::to_string_pretty(&reply.body).unwrap();
        for (kind, id) in &world.ids {
            answer = answer.replace(id.as_str(), &format!("<{kind}>"));
        }
        answers += &format!("{method} {path} {body}\n{answer}\n\n");
    }
    let path = "src/tests/input.snapshot";
    if std::env::var_os("TRAM_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &answers).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    for (found, expected) in answers.split("\n\n").zip(expected.split("\n\n")) {
        assert_eq!(found, expected);
    }
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_body_is_bounded() {
    let fixture = Fixture::new().await;
    let mut body = br#"{"name":""#.to_vec();
    body.resize(crate::body::BODY_MAX_BYTES + 1, b'a');
    let token = Some(fixture.acme.owner.as_str());
    let reply = fixture.send(token, Method::POST, "/v1/apps", body).await;
    assert_eq!(reply.bad(413)["code"], "invalid_argument");
}

#[tokio::test]
async fn deep_nesting_is_refused_not_followed() {
    let fixture = Fixture::new().await;
    let body = "{\"a\":".repeat(100_000);
    let token = Some(fixture.acme.owner.as_str());
    fixture
        .send(token, Method::POST, "/v1/apps", body.into_bytes())
        .await
        .bad(400);
}

/// Names that the contract knows, so that random bodies reach beyond the first check.
const NAMES: &[&str] = &[
    "name",
    "app_id",
    "definition",
    "type",
    "regions",
    "docker",
    "image",
    "ports",
    "port",
    "protocol",
    "routes",
    "path",
    "env",
    "key",
    "value",
    "scalings",
    "min",
    "max",
    "targets",
    "sleep_idle_delay",
    "deep_sleep_value",
    "instance_types",
    "health_checks",
    "http",
    "tcp",
    "config_files",
    "content",
    "life_cycle",
    "delete_after_create",
    "services",
    "app",
    "security_policies",
    "basic_auths",
    "username",
    "password",
    "private_registry",
    "url",
    "network_policy",
    "egress",
    "mode",
    "allow_list",
    "cidr",
    "scopes",
    "proxy_ports",
    "subdomain",
    "cloudflare",
    "koyeb",
    "instances",
    "description",
    "expires_at",
    "validity",
    "save_only",
];
const TEXTS: &[&str] = &[
    "",
    "web",
    "shop",
    "WEB",
    "SANDBOX",
    "SIMPLE",
    "REGISTRY",
    "fra",
    "na",
    "nginx",
    "http",
    "/",
    "{{ secret.x }}",
    "{{ A }}",
    "region:fra",
    "a.example.org",
    "0644",
    "nano",
    "\u{1F980}",
    "%00",
    "00000000-0000-4000-8000-000000000000",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..100).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(TEXTS).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(NAMES), inner), 0..7).prop_map(|members| {
                Value::Object(
                    members
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

#[test]
fn no_body_and_no_query_breaks_us() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (fixture, world) = runtime.block_on(async {
        let fixture = Fixture::new().await;
        let world = World::new(&fixture).await;
        (fixture, world)
    });
    let calls: Vec<(Method, String)> = [
        (Method::POST, "/v1/apps".to_owned()),
        (Method::POST, "/v1/services".to_owned()),
        (Method::POST, "/v1/services?dry_run=true".to_owned()),
        (Method::PUT, format!("/v1/services/{}", world.ids["services"])),
        (Method::PATCH, format!("/v1/services/{}", world.ids["services"])),
        (
            Method::PUT,
            format!("/v1/services/{}/scale", world.ids["services"]),
        ),
        (Method::POST, "/v1/services-autocomplete".to_owned()),
        (Method::POST, "/v1/compose".to_owned()),
        (Method::POST, "/v1/secrets".to_owned()),
        (Method::PATCH, format!("/v1/secrets/{}", world.ids["secrets"])),
        (Method::POST, "/v1/domains".to_owned()),
        (Method::PATCH, format!("/v1/domains/{}", world.ids["domains"])),
        (Method::POST, "/v1/credentials".to_owned()),
        (Method::PUT, format!("/v1/projects/{}", world.ids["projects"])),
        (
            Method::PATCH,
            format!("/v1/organizations/{}", world.ids["organizations"]),
        ),
    ]
    .to_vec();
    let lists = [
        "/v1/apps",
        "/v1/services",
        "/v1/deployments",
        "/v1/instances",
        "/v1/domains",
        "/v1/secrets",
    ];
    let input = (
        proptest::sample::select(calls),
        any_json(),
        proptest::sample::select(lists.to_vec()),
        "[a-z_]{1,8}=[ -~]{0,12}",
    );
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    let token = Some(fixture.acme.owner.as_str());
    runner
        .run(&input, |((method, path), body, list, pair)| {
            let wrapped = match body {
                Value::Object(_) => body,
                other => json!({"name": "web", "definition": other.clone(), "app": other, "type": "SIMPLE"}),
            };
            let bytes = wrapped.to_string().into_bytes();
            let reply = runtime.block_on(fixture.send(token, method, &path, bytes));
            prop_assert!(
                reply.status.as_u16() < 500 || reply.status == StatusCode::NOT_IMPLEMENTED,
                "{:?}",
                reply
            );
            let escaped: String = pair
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || "=_%+&".contains(c) {
                        c
                    } else {
                        '.'
                    }
                })
                .collect();
            let query = format!(
                "{list}?limit={}&{escaped}",
                wrapped["name"].as_str().map_or(0, str::len)
            );
            let reply = runtime.block_on(fixture.send(token, Method::GET, &query, Vec::new()));
            prop_assert!(reply.status.as_u16() < 500, "{query} {:?}", reply);
            Ok(())
        })
        .unwrap();
}
