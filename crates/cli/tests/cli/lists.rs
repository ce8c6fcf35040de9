//! Lists, single objects, and the orders to a service.

use serde_json::json;

use crate::{
    server::{APP_ID, DEPLOYMENT_ID, INSTANCE_ID, SERVICE_ID, Server, deployment, page, service},
    tram::Tram,
};

#[test]
fn services_are_listed_with_their_apps() {
    let server = Server::start().with_shop();
    let tram = Tram::of(&server.url);
    tram.run("services list").expect(
        0,
        "SERVICE   TYPE  STATUS   AGE  ID        MESSAGE\n\
         shop/web  web   HEALTHY  3h   50000000\n",
        "",
    );
    let json = tram.run("services list --output json");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json.out).unwrap(),
        json!([service()])
    );
    let yaml = tram.run("services list --output yaml");
    assert!(
        yaml.out.contains("  created_at: 2026-03-01T09:00:00Z\n"),
        "{}",
        yaml.out
    );
}

#[test]
fn nothing_is_said_on_standard_error_alone() {
    let server = Server::start();
    server.answer("GET /v1/apps", page("apps", json!([])));
    let tram = Tram::of(&server.url);
    tram.run("apps list").expect(0, "", "no apps\n");
    tram.run("apps list -q").expect(0, "", "");
    tram.run("apps list -o json").expect(0, "[]\n", "");
}

#[test]
fn long_lists_are_read_page_after_page() {
    let server = Server::start();
    let secret = |index: usize| json!({ "id": format!("{index:08}-0000"), "name": format!("s{index}"), "type": "SIMPLE" });
    let full: Vec<_> = (0..100).map(secret).collect();
    let rest: Vec<_> = (100..103).map(secret).collect();
    server.answers(
        "GET /v1/secrets",
        vec![
            (200, json!({ "secrets": full })),
            (200, json!({ "secrets": rest })),
        ],
    );
    let ran = Tram::of(&server.url).run("secrets list");
    assert_eq!(ran.out.lines().count(), 104);
    let queries: Vec<String> = server
        .calls("GET /v1/secrets")
        .into_iter()
        .map(|call| call.query)
        .collect();
    assert_eq!(queries, ["limit=100&offset=0", "limit=100&offset=100"]);
}

#[test]
fn one_service_is_shown_by_any_of_its_names() {
    let server = Server::start().with_shop();
    let tram = Tram::of(&server.url);
    let expected = format!(
        "service:            shop/web\nid:                 {SERVICE_ID}\ntype:               web\n\
         status:             HEALTHY\nimage:              shop:1\nscale:              1\n\
         instances:          5 wanted, 4 ready\n\
         scaling:            stays at 5: 14.2 requests in flight per instance, target 3 (that is the maximum); \
         before: scaled 2 to 5: 20.1 requests in flight per instance, target 3\n\
         active deployment:  d0000000\nlatest deployment:  d0000000\ncreated:            3h ago\n"
    );
    for name in ["web", "shop/web", SERVICE_ID, "50000000", "5000000000004000"] {
        tram.run(&format!("services get {name}")).expect(0, &expected, "");
    }
    tram.run("services get shop/wep").expect(
        1,
        "",
        "error: there is no service `shop/wep`\n\
         hint: did you mean `shop/web`? `tram services list` shows all\n",
    );
}

#[test]
fn a_name_of_two_services_is_asked_back() {
    let server = Server::start().with_shop();
    let mut other = service();
    other["id"] = json!("60000000-0000-4000-8000-000000000001");
    other["app_id"] = json!("b0000000-0000-4000-8000-000000000001");
    server.answer("GET /v1/services", page("services", json!([service(), other])));
    Tram::of(&server.url).run("pause web").expect(
        1,
        "",
        "error: `web` can mean `shop/web` (50000000), `b0000000-0000-4000-8000-000000000001/web` (60000000)\n\
         hint: say which one by `app/service` or by its id\n",
    );
    assert!(server.changes().is_empty());
}

#[test]
fn orders_reach_the_service() {
    let server = Server::start().with_shop();
    let base = format!("/v1/services/{SERVICE_ID}");
    for line in [
        "POST %/pause",
        "POST %/resume",
        "PUT %/scale",
        "DELETE %/scale",
        "DELETE %",
    ] {
        server.answer(&line.replace('%', &base), json!({}));
    }
    let tram = Tram::of(&server.url);
    tram.run("pause web").expect(
        0,
        "",
        "pausing service `shop/web`; start it again with `tram resume shop/web`\n",
    );
    tram.run("services resume web")
        .expect(0, "", "resuming service `shop/web`\n");
    tram.run("scale web 3")
        .expect(0, "", "scaling service `shop/web` to 3 instances\n");
    assert_eq!(
        server.calls(&format!("PUT {base}/scale"))[0].body,
        json!({ "scalings": [{ "scopes": [], "instances": 3 }] })
    );
    tram.run("scale web --auto")
        .expect(0, "", "service `shop/web` scales as its definition says\n");
    tram.run("delete web")
        .expect(0, "", "deleting service `shop/web`\n");
    assert_eq!(server.changes().len(), 5);
}

#[test]
fn programs_get_an_object_for_every_order() {
    const OTHER_ID: &str = "e0000000-0000-4000-8000-000000000001";
    let server = Server::start().with_shop();
    let service_path = format!("/v1/services/{SERVICE_ID}");
    let app_path = format!("/v1/apps/{APP_ID}");
    let domain = json!({ "id": OTHER_ID, "name": "shop.example.org", "type": "CUSTOM", "status": "ACTIVE" });
    let secret = json!({ "id": OTHER_ID, "name": "token", "type": "SIMPLE" });
    server.answer("GET /v1/domains", page("domains", json!([domain])));
    server.answer("GET /v1/secrets", page("secrets", json!([secret])));
    server.answer(
        &format!("GET /v1/domains/{OTHER_ID}"),
        json!({ "domain": domain }),
    );
    server.answer(
        &format!("PATCH /v1/domains/{OTHER_ID}"),
        json!({ "domain": domain }),
    );
    server.answer(
        &format!("PATCH /v1/secrets/{OTHER_ID}"),
        json!({ "secret": secret }),
    );
    server.answer(&format!("PUT {service_path}"), json!({ "service": service() }));
    for line in [
        format!("POST {service_path}/pause"),
        format!("POST {service_path}/resume"),
        format!("PUT {service_path}/scale"),
        format!("DELETE {service_path}/scale"),
        format!("DELETE {service_path}"),
        format!("POST {app_path}/pause"),
        format!("POST {app_path}/resume"),
        format!("DELETE {app_path}"),
        format!("POST /v1/deployments/{DEPLOYMENT_ID}/cancel"),
        format!("POST /v1/domains/{OTHER_ID}/refresh"),
        format!("DELETE /v1/domains/{OTHER_ID}"),
        format!("DELETE /v1/secrets/{OTHER_ID}"),
    ] {
        server.answer(&line, json!({}));
    }
    let acted = |action, id, name| json!({ "id": id, "name": name, "action": action });
    let tram = Tram::of(&server.url);
    for (line, expected) in [
        ("pause web", acted("pause", SERVICE_ID, "web")),
        ("services resume web", acted("resume", SERVICE_ID, "web")),
        (
            "scale web 3",
            json!({ "id": SERVICE_ID, "name": "web", "action": "scale", "instances": 3 }),
        ),
        ("scale web --auto", acted("scale", SERVICE_ID, "web")),
        ("scale web --min 1 --max 2", service()),
        ("delete web", acted("delete", SERVICE_ID, "web")),
        ("apps pause shop", acted("pause", APP_ID, "shop")),
        ("apps resume shop", acted("resume", APP_ID, "shop")),
        ("apps delete shop", acted("delete", APP_ID, "shop")),
        // Its name is not known where its id was given.
        (
            "apps delete a0000000",
            json!({ "id": APP_ID, "action": "delete" }),
        ),
        (
            "deployments cancel d0000000-0000-4000-8000-000000000001",
            json!({ "id": DEPLOYMENT_ID, "action": "cancel" }),
        ),
        ("domains refresh shop.example.org", domain.clone()),
        ("domains attach shop.example.org shop", domain.clone()),
        (
            "domains delete shop.example.org",
            acted("delete", OTHER_ID, "shop.example.org"),
        ),
        ("secrets update token --value x", secret.clone()),
        ("secrets delete token", acted("delete", OTHER_ID, "token")),
    ] {
        let ran = tram.run(&format!("{line} -o json -q"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{line}");
        let got: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_default();
        assert_eq!(got, expected, "{line}: {}", ran.out);
    }
    tram.run("pause web -o yaml -q")
        .expect(0, &format!("action: pause\nid: {SERVICE_ID}\nname: web\n"), "");
}

#[test]
fn what_the_server_ignored_is_told() {
    let server = Server::start().with_shop();
    let line = format!("POST /v1/services/{SERVICE_ID}/pause");
    server.answer(&line, json!({}));
    server.warn(&line, "ignored unknown members: colour");
    let tram = Tram::of(&server.url);
    tram.run("pause web").expect(
        0,
        "",
        "warning: the server ignored unknown members: colour\n\
         pausing service `shop/web`; start it again with `tram resume shop/web`\n",
    );
    tram.run("pause web -q").expect(0, "", "");
}

#[test]
fn new_bounds_are_a_new_definition() {
    let server = Server::start().with_shop();
    let line = format!("PUT /v1/services/{SERVICE_ID}");
    server.answer(&line, json!({ "service": service() }));
    Tram::of(&server.url).run("scale web --min 0 --max 2").expect(
        0,
        "",
        "scaling service `shop/web` between 0 and 2 instances; deployment d0000000\n",
    );
    let mut expected = deployment("HEALTHY", &[])["deployment"]["definition"].take();
    expected["scalings"][0] = json!({ "min": 0, "max": 2, "targets": [] });
    assert_eq!(server.calls(&line)[0].body, json!({ "definition": expected }));
}

#[test]
fn apps_are_made_shown_and_deleted() {
    let server = Server::start().with_shop();
    let tram = Tram::of(&server.url);
    tram.run("apps list").expect(
        0,
        "NAME  STATUS   DOMAINS                            AGE  ID\n\
         shop  HEALTHY  shop-acme-01020304.tram.localhost  3h   a0000000\n",
        "",
    );
    server.refuse(
        "POST /v1/apps",
        400,
        json!({ "status": 400, "code": "invalid_argument", "message": "The app cannot be created",
                "fields": [{ "field": "name", "description": "already exists" }] }),
    );
    tram.run("apps create shop").expect(
        1,
        "",
        "error: The app cannot be created\n  name: already exists\n",
    );
    server.answer("POST /v1/apps", json!({ "app": { "id": APP_ID } }));
    tram.run("apps create shop")
        .expect(0, &format!("{APP_ID}\n"), "created app `shop`\n");
    server.answer(&format!("DELETE /v1/apps/{APP_ID}"), json!({}));
    tram.run("apps delete shop")
        .expect(0, "", "deleting app `shop` and its services\n");
}

#[test]
fn deployments_instances_and_events_are_listed() {
    let server = Server::start().with_shop();
    let listed = deployment("HEALTHY", &[])["deployment"].take();
    server.answer("GET /v1/deployments", page("deployments", json!([listed])));
    let instance = json!({
        "id": INSTANCE_ID, "service_id": SERVICE_ID, "status": "UNHEALTHY", "type": "nano", "region": "local",
        "created_at": "2026-03-01T11:59:30Z", "messages": ["the check on port 80 fails: connection refused"],
    });
    server.answer("GET /v1/instances", page("instances", json!([instance])));
    server.answer(
        "GET /v1/service_events",
        page(
            "events",
            json!([
                { "when": "2026-03-01T11:59:00Z", "type": "new", "message": "second" },
                { "when": "2026-03-01T11:58:00Z", "type": "old", "message": "first" },
            ]),
        ),
    );
    server.answer(&format!("POST /v1/deployments/{DEPLOYMENT_ID}/cancel"), json!({}));
    let tram = Tram::of(&server.url);
    tram.run("deployments list web").expect(
        0,
        "ID        SERVICE   VERSION  STATUS   IMAGE   AGE\n\
         d0000000  shop/web  3        HEALTHY  shop:1  2m\n",
        "",
    );
    tram.run("instances list web").expect(
        0,
        "ID        SERVICE   STATUS     TYPE  REGION  AGE  MESSAGE\n\
         10000000  shop/web  UNHEALTHY  nano  local   30s  the check on port 80 fails: connection refused\n",
        "",
    );
    assert_eq!(
        server.calls("GET /v1/instances")[0].query,
        format!(
            "service_id={SERVICE_ID}&statuses=ALLOCATING&statuses=STARTING&statuses=HEALTHY&statuses=UNHEALTHY\
             &statuses=STOPPING&statuses=SLEEPING&limit=100&offset=0"
        )
    );
    tram.run("events web")
        .expect(0, "AGE  TYPE  MESSAGE\n2m   old   first\n1m   new   second\n", "");
    tram.run("deployments cancel d0000000")
        .expect(0, "", "canceling deployment d0000000\n");
}

#[test]
fn domains_are_created_with_advice_and_attached() {
    let server = Server::start().with_shop();
    let domain = json!({
        "id": "e0000000-0000-4000-8000-000000000001", "name": "shop.example.org", "type": "CUSTOM",
        "status": "PENDING", "app_id": APP_ID, "intended_cname": "x.tram.localhost",
        "created_at": "2026-03-01T11:59:00Z",
    });
    server.answer("POST /v1/domains", json!({ "domain": domain }));
    server.answer("GET /v1/domains", page("domains", json!([domain])));
    server.answer(
        "PATCH /v1/domains/e0000000-0000-4000-8000-000000000001",
        json!({ "domain": domain }),
    );
    let tram = Tram::of(&server.url);
    tram.run("domains create shop.example.org --app shop").expect(
        0,
        "e0000000-0000-4000-8000-000000000001\n",
        "created domain `shop.example.org`\n\
         hint: point a CNAME entry of shop.example.org at x.tram.localhost, then `tram domains refresh shop.example.org`\n",
    );
    tram.run("domains list").expect(
        0,
        "NAME              TYPE    STATUS   APP   AGE  ID\n\
         shop.example.org  custom  PENDING  shop  1m   e0000000\n",
        "",
    );
    let mut wrong = domain.clone();
    wrong["status"] = json!("ERROR");
    wrong["messages"] = json!(["the DNS has no address for `shop.example.org`"]);
    server.answer(
        "POST /v1/domains/e0000000-0000-4000-8000-000000000001/refresh",
        json!({}),
    );
    server.answer(
        "GET /v1/domains/e0000000-0000-4000-8000-000000000001",
        json!({ "domain": wrong }),
    );
    tram.run("domains refresh shop.example.org").expect(
        0,
        "domain `shop.example.org` is ERROR: the DNS has no address for `shop.example.org`\n",
        "",
    );
    tram.run("domains attach shop.example.org shop").expect(
        0,
        "",
        "app `shop` answers under `shop.example.org`\n",
    );
    let call = &server.calls("PATCH /v1/domains/e0000000-0000-4000-8000-000000000001")[0];
    assert_eq!(
        (call.query.as_str(), &call.body),
        ("update_mask=app_id", &json!({ "app_id": APP_ID }))
    );
}
