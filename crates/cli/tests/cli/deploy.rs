//! `tram deploy`: new, again, failing, and stopped waiting for.

use serde_json::json;

use crate::{
    server::{APP_ID, DEPLOYMENT_ID, SERVICE_ID, Server, app, deployment, page, service},
    tram::Tram,
};

const DEPLOYMENT: &str = "GET /v1/deployments/d0000000-0000-4000-8000-000000000001";

fn empty() -> Server {
    let server = Server::start().with_shop();
    server.answer("GET /v1/apps", page("apps", json!([])));
    server.answer("GET /v1/services", page("services", json!([])));
    server.answer("POST /v1/services", json!({ "service": service() }));
    server.answer(
        "POST /v1/compose",
        json!({ "app": app(), "services": [service()] }),
    );
    server
}

#[test]
fn a_new_service_ends_with_its_url() {
    let server = empty();
    server.answers(
        DEPLOYMENT,
        ["PENDING", "PROVISIONING", "ALLOCATING", "STARTING", "HEALTHY"]
            .map(|status| (200, deployment(status, &[])))
            .to_vec(),
    );
    let ran = Tram::of(&server.url).run(
        "deploy shop:1 --name web --app shop -p 80 -e A=1 --secret B=token --check http:80:/up --sleep-after 90s",
    );
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (
            Some(0),
            "https://shop-acme-01020304.tram.localhost\n",
            "creating app `shop`\ncreating service `shop/web`\npulling the image\nstarting\nwaiting for health\n\
             healthy after TIME\n"
        )
    );
    assert_eq!(server.calls("POST /v1/services")[0].query, "dry_run=true");
    // App and service in one call, so that there is never the one without the other.
    assert_eq!(server.changes(), ["POST /v1/services", "POST /v1/compose"]);
    let body = &server.calls("POST /v1/compose")[0].body;
    assert_eq!(
        body["app"],
        json!({ "name": "shop", "life_cycle": { "delete_when_empty": true } })
    );
    let definition = &body["services"][0]["definition"];
    assert_eq!(definition["type"], "WEB");
    assert_eq!(definition["regions"], json!(["local"]));
    assert_eq!(definition["docker"]["image"], "shop:1");
    assert_eq!(definition["ports"], json!([{ "port": 80, "protocol": "http" }]));
    assert_eq!(
        definition["env"],
        json!([
            { "scopes": [], "key": "A", "value": "1" },
            { "scopes": [], "key": "B", "value": "{{ secret.token }}" },
        ])
    );
    assert_eq!(definition["scalings"][0]["min"], 0);
    assert_eq!(
        definition["scalings"][0]["targets"][0]["sleep_idle_delay"]["deep_sleep_value"],
        90
    );
    assert_eq!(definition["health_checks"][0]["http"]["path"], "/up");
}

#[test]
fn a_new_service_of_an_app_that_is_there_goes_into_it() {
    let server = empty();
    server.answer("GET /v1/apps", page("apps", json!([app()])));
    Tram::of(&server.url)
        .run("deploy shop:1 -n web --app shop --no-wait")
        .expect(
            0,
            &format!("{DEPLOYMENT_ID}\n"),
            "creating service `shop/web`\nnot waiting; look with `tram deployments get d0000000`\n",
        );
    assert_eq!(server.changes(), ["POST /v1/services"]);
    assert_eq!(server.calls("POST /v1/services")[0].body["app_id"], APP_ID);
}

#[test]
fn an_existing_service_is_updated() {
    let server = Server::start().with_shop();
    let line = format!("PUT /v1/services/{SERVICE_ID}");
    server.answer(&line, json!({ "service": service() }));
    Tram::of(&server.url)
        .run("deploy shop:2 -n web --app shop -e B=2")
        .expect(
            0,
            "https://shop-acme-01020304.tram.localhost\n",
            "updating service `shop/web`\nnothing changed, so no deployment was made; \
         `tram redeploy shop/web` pulls the image anew\nhealthy after TIME\n",
        );
    let body = &server.calls(&line)[0].body;
    assert_eq!(body["definition"]["docker"]["image"], "shop:2");
    assert_eq!(body["definition"]["instance_types"][0]["type"], "nano");
    let keys: Vec<_> = body["definition"]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|env| &env["key"])
        .collect();
    assert_eq!(keys, ["A", "B"]);
    assert_eq!(server.changes(), [line]);
}

#[test]
fn a_paused_service_is_resumed() {
    let server = Server::start().with_shop();
    let mut paused = service();
    paused["status"] = json!("PAUSED");
    paused["latest_deployment_id"] = json!("d0000000-0000-4000-8000-000000000009");
    server.answer(
        &format!("PUT /v1/services/{SERVICE_ID}"),
        json!({ "service": paused }),
    );
    server.answer(&format!("POST /v1/services/{SERVICE_ID}/resume"), json!({}));
    let mut resumed = service();
    resumed["latest_deployment_id"] = json!("d0000000-0000-4000-8000-000000000002");
    server.answers(
        &format!("GET /v1/services/{SERVICE_ID}"),
        vec![(200, json!({ "service": resumed }))],
    );
    Tram::of(&server.url)
        .run("deploy shop:2 -n web --app shop --no-wait")
        .expect(
            0,
            "d0000000-0000-4000-8000-000000000002\n",
            "updating service `shop/web`\nresuming service `shop/web`, which was paused\n\
         not waiting; look with `tram deployments get d0000000`\n",
        );
}

#[test]
fn a_server_on_other_ports_says_so_with_the_domain() {
    let server = Server::start().with_shop();
    let mut elsewhere = app();
    elsewhere["domains"][0]["url"] = json!("https://shop-acme-01020304.tram.localhost:8443");
    server.answer(&format!("GET /v1/apps/{APP_ID}"), json!({ "app": elsewhere }));
    let mut reply = deployment("HEALTHY", &[]);
    reply["deployment"]["definition"]["routes"][0]["path"] = json!("/api");
    reply["deployment"]["metadata"]["proxy_ports"] =
        json!([{ "host": "tram.localhost", "public_port": 30001 }]);
    server.answer(DEPLOYMENT, reply.clone());
    server.answer(
        &format!("POST /v1/services/{SERVICE_ID}/redeploy"),
        json!({ "deployment": { "id": DEPLOYMENT_ID } }),
    );
    Tram::of(&server.url).run("redeploy web").expect(
        0,
        "https://shop-acme-01020304.tram.localhost:8443/api\ntcp://tram.localhost:30001\n",
        "redeploying service `shop/web`\nhealthy after TIME\n",
    );
}

#[test]
fn programs_get_everything_as_json() {
    let server = empty();
    let ran = Tram::of(&server.url).run("deploy shop:1 -n web --app shop -q -o json");
    assert_eq!(ran.err, "");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap(),
        json!({
            "app": "shop", "service": "web", "service_id": SERVICE_ID, "deployment_id": DEPLOYMENT_ID,
            "status": "HEALTHY", "urls": ["https://shop-acme-01020304.tram.localhost"],
        })
    );
}

#[test]
fn what_a_deployment_waits_for_is_told() {
    let server = empty();
    let down = "cannot reach the registry; trying again";
    server.answer(DEPLOYMENT, deployment("PROVISIONING", &[down]));
    Tram::of(&server.url)
        .run("deploy shop:1 -n web --app shop --timeout 1s")
        .expect(
            1,
            "",
            "creating app `shop`\ncreating service `shop/web`\npulling the image\n\
         error: deployment d0000000 of `shop/web` is still PROVISIONING after 1s\n  \
         cannot reach the registry; trying again\n\
         hint: it goes on by itself; look with `tram services get shop/web`, wait longer with `--timeout`\n",
        );
}

#[test]
fn a_failure_shows_its_cause_and_the_end_of_the_log() {
    let server = empty();
    server.answers(
        DEPLOYMENT,
        vec![
            (200, deployment("STARTING", &[])),
            (200, deployment("ERRORING", &["the program exited with code 3"])),
            (200, deployment("ERROR", &["the program exited with code 3"])),
        ],
    );
    server.answer(
        "GET /v1/streams/logs/query",
        json!({ "data": [{ "msg": "giving up" }, { "msg": "no database\n" }], "pagination": { "has_more": false } }),
    );
    let mut failed = service();
    failed["active_deployment_id"] = json!("");
    server.answer(
        &format!("GET /v1/services/{SERVICE_ID}"),
        json!({ "service": failed }),
    );
    let tram = Tram::of(&server.url);
    tram.run("deploy shop:1 -n web --app shop").expect(
        1,
        "",
        "creating app `shop`\ncreating service `shop/web`\nwaiting for health\n\
         error: deployment d0000000 of `shop/web` ended as ERROR\n  the program exited with code 3\n\n\
         last log lines:\n  no database\n  giving up\n\
         hint: see more with `tram logs shop/web`, remove it with `tram delete shop/web`\n",
    );
    assert_eq!(
        server.calls("GET /v1/streams/logs/query")[0].query,
        format!("deployment_id={DEPLOYMENT_ID}&type=runtime&order=desc&limit=20")
    );
    failed["active_deployment_id"] = json!("another");
    server.answer(
        &format!("GET /v1/services/{SERVICE_ID}"),
        json!({ "service": failed }),
    );
    let ran = tram.run("deploy shop:1 -n web --app shop");
    assert!(
        ran.err
            .ends_with("hint: the deployment before keeps serving; see more with `tram logs shop/web`\n"),
        "{}",
        ran.err
    );
}

#[test]
fn a_refused_definition_shows_each_member() {
    let server = empty();
    server.refuse(
        "POST /v1/services",
        400,
        json!({ "status": 400, "code": "invalid_argument", "message": "The definition is not valid", "fields": [
            { "field": "definition.instance_types.0.type", "description": "`huge` is not in the catalog" },
            { "field": "definition.env.0.value", "description": "there is no secret `token`" },
        ] }),
    );
    Tram::of(&server.url)
        .run("deploy shop:1 -n web --app shop")
        .expect(
            1,
            "",
            "error: The definition is not valid\n\
         \x20 definition.instance_types.0.type: `huge` is not in the catalog\n\
         \x20 definition.env.0.value: there is no secret `token`\n\
         hint: look at --instance-type, --env and --secret of `tram deploy`\n",
        );
    assert_eq!(
        server.changes(),
        ["POST /v1/services"],
        "nothing but the check was asked for"
    );
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let server = empty();
    server.answers(
        DEPLOYMENT,
        vec![
            (200, deployment("STARTING", &[])),
            (
                503,
                json!({ "status": 503, "code": "unavailable", "message": "The server is stopping." }),
            ),
            (200, deployment("HEALTHY", &[])),
        ],
    );
    let ran = Tram::of(&server.url).run("deploy shop:1 -n web --app shop");
    assert_eq!(ran.code, Some(0));
    assert!(
        ran.err
            .contains("The server is stopping; still waiting\nthe server is back\n"),
        "{}",
        ran.err
    );
}

#[test]
fn waiting_has_an_end() {
    let server = empty();
    server.answer(DEPLOYMENT, deployment("STARTING", &[]));
    Tram::of(&server.url)
        .run("deploy shop:1 -n web --app shop --timeout 1s")
        .expect(
            1,
            "",
            "creating app `shop`\ncreating service `shop/web`\nwaiting for health\n\
         error: deployment d0000000 of `shop/web` is still STARTING after 1s\n\
         hint: it goes on by itself; look with `tram services get shop/web`, wait longer with `--timeout`\n",
        );
    Tram::of(&server.url)
        .run("deploy shop:1 -n web --app shop --no-wait")
        .expect(
            0,
            &format!("{DEPLOYMENT_ID}\n"),
            "creating app `shop`\ncreating service `shop/web`\n\
         not waiting; look with `tram deployments get d0000000`\n",
        );
}

#[test]
fn ctrl_c_stops_the_waiting_and_says_what_goes_on() {
    let server = empty();
    server.answer(DEPLOYMENT, deployment("STARTING", &[]));
    let tram = Tram::of(&server.url);
    // A permit is kept until the command waits for it, so this is Ctrl-C as soon as it waits.
    tram.interrupt.notify_one();
    let ran = tram.run("deploy shop:1 -n web --app shop");
    assert_eq!((ran.code, ran.out.as_str()), (Some(130), ""));
    assert!(
        ran.err.ends_with(
            "stopped waiting; the deployment goes on\n\
             hint: look with `tram deployments get d0000000`, undo with `tram delete shop/web`\n"
        ),
        "{}",
        ran.err
    );
    assert_eq!(server.changes(), ["POST /v1/services", "POST /v1/compose"]);
}

#[test]
fn ctrl_c_offers_the_undoing_that_the_server_would_take() {
    let server = Server::start().with_shop();
    let mut updated = service();
    updated["latest_deployment_id"] = json!("d0000000-0000-4000-8000-000000000002");
    server.answer(
        &format!("PUT /v1/services/{SERVICE_ID}"),
        json!({ "service": updated }),
    );
    server.answer(
        &format!("POST /v1/services/{SERVICE_ID}/redeploy"),
        json!({ "deployment": { "id": "d0000000-0000-4000-8000-000000000002" } }),
    );
    let tram = Tram::of(&server.url);
    for (line, status, undo) in [
        (
            "deploy shop:2 -n web --app shop",
            "SCHEDULED",
            ", undo with `tram deployments cancel d0000000`",
        ),
        (
            "deploy shop:2 -n web --app shop",
            "STARTING",
            ", undo by deploying the former image again",
        ),
        (
            "redeploy web",
            "PENDING",
            ", undo with `tram deployments cancel d0000000`",
        ),
        ("redeploy web", "ALLOCATING", ""),
    ] {
        server.answer(
            "GET /v1/deployments/d0000000-0000-4000-8000-000000000002",
            deployment(status, &[]),
        );
        // Ctrl-C as soon as the status was said.
        let interrupt = tram.interrupt.clone();
        let said = match status {
            "STARTING" => "waiting for health\n",
            "ALLOCATING" => "starting\n",
            _ => "pulling the image\n",
        };
        let ran = tram.run_until(line, said, move || interrupt.notify_one());
        assert_eq!(ran.code, Some(130), "{}", ran.err);
        assert!(
            ran.err.ends_with(&format!(
                "hint: look with `tram deployments get d0000000`{undo}\n"
            )),
            "{line} at {status}: {}",
            ran.err
        );
    }
}
