//! Form and credentials.

use http::HeaderValue;

use super::*;
use crate::secret;

fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder().uri(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).expect("a request")
}

#[test]
fn a_request_names_one_host() {
    assert_eq!(
        form(&request("/", &[("host", "a.test:80")])).expect("fine"),
        "a.test:80"
    );
    assert_eq!(
        form(&request("http://b.test/", &[("host", "a.test")])).expect("fine"),
        "b.test"
    );
    for headers in [
        vec![],
        vec![("host", "a"), ("host", "a")],
        vec![("host", "")],
        vec![("host", "a/b")],
        vec![("host", "a b")],
        vec![("host", "a,b")],
    ] {
        assert!(
            matches!(form(&request("/", &headers)), Err(Refusal::NoHost)),
            "{headers:?}"
        );
    }
}

#[test]
fn long_targets_and_tunnels_are_refused() {
    let long = format!("/{}", "x".repeat(URI_MAX_BYTES));
    assert!(matches!(
        form(&request(&long, &[("host", "a")])),
        Err(Refusal::UriTooLong)
    ));
    let mut tunnel = request("a.test:443", &[]);
    *tunnel.method_mut() = Method::CONNECT;
    assert!(matches!(form(&tunnel), Err(Refusal::NotAnOrigin)));
}

fn security() -> Security {
    let compile = |text: &str| secret::Compiled::new(&secret::hash(text)).expect("our own hash");
    Security {
        basic_auths: vec![("ann".into(), compile("pass:word"))],
        api_keys: vec![compile("key-1"), compile("key-2")],
    }
}

fn admitted(name: &'static str, value: &str) -> bool {
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static(name),
        HeaderValue::from_str(value).expect("a value"),
    )]);
    authorise(&security(), &headers).is_ok()
}

#[test]
fn any_one_credential_lets_in() {
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    assert!(admitted("authorization", &basic("ann:pass:word")));
    assert!(admitted("authorization", "bearer key-2"));
    assert!(admitted("x-api-key", "key-1"));
    for wrong in [
        basic("ann:pass"),
        basic("bob:pass:word"),
        basic("ann"),
        "Basic ???".into(),
        "Bearer key-3".into(),
        "Bearer".into(),
        "Digest key-1".into(),
    ] {
        assert!(!admitted("authorization", &wrong), "{wrong}");
    }
    assert!(!admitted("x-api-key", "pass:word"));
    assert!(authorise(&security(), &HeaderMap::new()).is_err());
}
