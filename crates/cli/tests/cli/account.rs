//! Logging in, contexts, and what is said when there is no server or no token.

use std::{net::TcpListener, os::unix::fs::PermissionsExt as _};

use serde_json::json;

use crate::{server::Server, tram::Tram};

#[test]
fn a_token_is_checked_then_kept() {
    let server = Server::start();
    let tram = Tram::new().typing(b"0123456789abcdef\n");
    tram.run(&format!("login --url {}/", server.url)).expect(
        0,
        "",
        &format!(
            "logged in to organization `acme` at {}; context `local` is now the current one\n",
            server.url
        ),
    );
    let calls = server.calls("GET /v1/account/organization");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].headers["authorization"], "Bearer 0123456789abcdef");
    let mode = std::fs::metadata(tram.contexts()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    tram.run("context current").expect(
        0,
        &format!("context:  local\nurl:      {}\ntoken:    yes\n", server.url),
        "",
    );
}

#[test]
fn a_refused_token_is_not_kept() {
    let server = Server::start();
    server.refuse(
        "GET /v1/account/organization",
        401,
        json!({ "status": 401, "code": "authentication_error", "message": "The token is not known." }),
    );
    let tram = Tram::new();
    tram.run(&format!("login --url {} --token nobody", server.url)).expect(
        1,
        "",
        &format!(
            "error: The token is not known\nhint: log in with `tram login --url {} --token TOKEN`, or set TRAM_TOKEN\n",
            server.url
        ),
    );
    assert!(!tram.contexts().exists());
}

#[test]
fn contexts_are_listed_chosen_and_deleted() {
    let server = Server::start();
    let tram = Tram::new();
    for name in ["home", "work"] {
        let ran = tram.run(&format!("login --url {} --token t --name {name} -q", server.url));
        ran.expect(0, "", "");
    }
    tram.run("context list").expect(
        0,
        &format!("   NAME  URL\n   home  {url}\n*  work  {url}\n", url = server.url),
        "",
    );
    tram.run("context use home")
        .expect(0, "", "the current context is now `home`\n");
    tram.run("context use hoem").expect(
        1,
        "",
        "error: there is no context `hoem`\nhint: `tram context list` shows what there is; `tram login` adds one\n",
    );
    let chosen = "{\n  \"action\": \"use\",\n  \"name\": \"home\"\n}\n";
    tram.run("context use home -q -o json").expect(0, chosen, "");
    tram.run("context delete home")
        .expect(0, "", "deleted context `home`\n");
    tram.run("context list -o json").expect(
        0,
        &format!(
            "[\n  {{\n    \"current\": false,\n    \"name\": \"work\",\n    \"url\": \"{}\"\n  }}\n]\n",
            server.url
        ),
        "",
    );
    tram.run("services list --context wrok").expect(
        1,
        "",
        "error: there is no context `wrok`\nhint: `tram context list` shows what there is; `tram login` adds one\n",
    );
}

#[test]
fn a_server_that_is_not_there_is_told_of_with_a_hint() {
    // A port that was free a moment ago and that nobody else takes before the call.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let hint =
        "hint: is tram up running? start it with `sudo tram up`, or choose another with `tram context use`\n";
    Tram::of(&url).run("apps list").expect(
        1,
        "",
        &format!("error: cannot reach {url}\n  because: Connection refused (os error 111)\n{hint}"),
    );
    let verbose = Tram::of(&url).run("apps list -v");
    assert!(
        verbose.err.starts_with(&format!(
            "using {url} (from TRAM_URL)\nerror: cannot reach {url}\n"
        )),
        "{}",
        verbose.err
    );
    assert!(verbose.err.matches("  because: ").count() > 1, "{}", verbose.err);
}

#[test]
fn an_address_that_makes_no_sense_is_refused() {
    Tram::of("ftp://x").run("apps list").expect(
        1,
        "",
        "error: `ftp://x` is not the address of a server: it must start with http:// or https://\n\
         hint: an address looks like http://127.0.0.1:7080 or https://cloud.example.org\n",
    );
}

#[test]
fn a_server_of_another_kind_is_noticed() {
    let server = Server::start();
    server.answer("GET /v1/apps", json!({ "hello": "world" }));
    Tram::of(&server.url).run("apps list").expect(
        1,
        "",
        &format!(
            "error: {}/v1/apps does not answer as the API does: the reply has no `apps`\n\
             hint: check the address with `tram context current`: it must be the API's\n",
            server.url
        ),
    );
}
