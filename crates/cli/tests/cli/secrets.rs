//! Secrets: where values come from, and the shapes they have on the wire.

use serde_json::json;

use crate::{
    server::{Server, page},
    tram::Tram,
};

const ID: &str = "f0000000-0000-4000-8000-000000000001";

fn server() -> Server {
    let server = Server::start();
    let secret = json!({
        "id": ID, "name": "token", "type": "SIMPLE", "created_at": "2026-03-01T11:00:00Z",
        "updated_at": "2026-03-01T11:30:00Z",
    });
    server.answer("POST /v1/secrets", json!({ "secret": secret }));
    server.answer("GET /v1/secrets", page("secrets", json!([secret])));
    server.answer(&format!("GET /v1/secrets/{ID}"), json!({ "secret": secret }));
    server.answer(&format!("PATCH /v1/secrets/{ID}"), json!({ "secret": secret }));
    server
}

#[test]
fn a_value_comes_from_an_argument_a_file_or_input() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    std::fs::write(&file, "from the file\n").unwrap();
    let tram = Tram::of(&server.url).typing(b"from input\n");
    for line in [
        "secrets create token --value given".to_owned(),
        format!("secrets create token --from-file {}", file.display()),
        "secrets create token".to_owned(),
    ] {
        tram.run(&line)
            .expect(0, &format!("{ID}\n"), "created secret `token`\n");
    }
    let values: Vec<_> = server
        .calls("POST /v1/secrets")
        .into_iter()
        .map(|call| call.body)
        .collect();
    let simple = |value: &str| json!({ "name": "token", "type": "SIMPLE", "value": value });
    assert_eq!(
        values,
        [simple("given"), simple("from the file\n"), simple("from input\n")]
    );
    let missing = tram.run("secrets create token --from-file /does/not/exist");
    missing.expect(
        1,
        "",
        "error: cannot read /does/not/exist\n  because: No such file or directory (os error 2)\n",
    );
}

#[test]
fn registries_have_shapes_of_their_own() {
    let server = server();
    let tram = Tram::of(&server.url).typing(b"password\n");
    for (line, member, expected) in [
        (
            "--type docker-hub --registry-username ann",
            "docker_hub_registry",
            json!({ "username": "ann", "password": "password" }),
        ),
        (
            "--type private --registry-username ann --registry-url r.example.org",
            "private_registry",
            json!({ "username": "ann", "password": "password", "url": "r.example.org" }),
        ),
        (
            "--type gcp --registry-url gcr.io",
            "gcp_container_registry",
            json!({ "keyfile_content": "password\n", "url": "gcr.io" }),
        ),
        (
            "--type azure --registry-username ann --registry-name mine",
            "azure_container_registry",
            json!({ "registry_name": "mine", "username": "ann", "password": "password" }),
        ),
    ] {
        assert_eq!(
            tram.run(&format!("secrets create pull {line}")).code,
            Some(0),
            "{line}"
        );
        let body = server.calls("POST /v1/secrets").pop().unwrap().body;
        assert_eq!(
            body,
            json!({ "name": "pull", "type": "REGISTRY", member: expected })
        );
    }
    tram.run("secrets create pull --type private --registry-username ann")
        .expect(
            2,
            "",
            "error: a secret of type private needs --registry-url\nhint: the value is the password\n",
        );
}

#[test]
fn values_are_revealed_exactly_and_listed_never() {
    let server = server();
    server.answer(
        &format!("POST /v1/secrets/{ID}/reveal"),
        json!({ "value": "s3cret" }),
    );
    let tram = Tram::of(&server.url);
    tram.run("secrets reveal token").expect(0, "s3cret\n", "");
    tram.run("secrets list").expect(
        0,
        "NAME   TYPE    HOSTS  UPDATED  ID\ntoken  simple  any    30m      f0000000\n",
        "",
    );
    tram.run("secrets update token --value new").expect(
        0,
        "",
        "updated secret `token`; services see it after `tram redeploy`\n",
    );
    assert_eq!(
        server.calls(&format!("PATCH /v1/secrets/{ID}"))[0].body,
        json!({ "name": "token", "type": "SIMPLE", "value": "new" })
    );
    tram.run("secrets update token --type github --registry-username a --value b")
        .expect(
            2,
            "",
            "error: secret `token` is of type simple\n\
         hint: give the same `--type`, or delete it and create it anew\n",
        );
}
