//! What instances see.

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            )
        })
        .collect()
}

fn through(pairs: &[(&str, &str)]) -> (HeaderMap, Option<HeaderValue>) {
    let mut all = HeaderMap::new();
    for (name, value) in pairs {
        all.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_str(value).expect("a value"),
        );
    }
    let client = Client::new("10.0.0.9".parse().expect("an address"), 8443, true);
    let upgrade = request(
        &mut all,
        &client,
        HeaderValue::from_static("a.test"),
        &HeaderValue::from_static("id-1"),
    );
    (all, upgrade)
}

#[test]
fn hop_by_hop_headers_go_and_the_rest_stays() {
    let (seen, upgrade) = through(&[
        ("connection", "close, x-secret"),
        ("keep-alive", "5"),
        ("x-secret", "1"),
        ("proxy-authorization", "x"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, trailers"),
        ("expect", "100-continue"),
        ("upgrade", "websocket"),
        ("cookie", "a=b"),
    ]);
    assert!(
        upgrade.is_none(),
        "an upgrade that Connection does not name is none"
    );
    for gone in [
        "connection",
        "keep-alive",
        "x-secret",
        "proxy-authorization",
        "transfer-encoding",
        "expect",
        "upgrade",
    ] {
        assert!(!seen.contains_key(gone), "{gone}");
    }
    assert_eq!(seen["te"], "trailers");
    assert_eq!(seen["cookie"], "a=b");
}

#[test]
fn connection_cannot_remove_what_routing_and_admission_rest_on() {
    let (seen, _) = through(&[
        (
            "connection",
            "host, authorization, x-forwarded-for, content-length",
        ),
        ("host", "a"),
        ("authorization", "b"),
        ("content-length", "1"),
    ]);
    for stays in ["host", "authorization", "content-length", "x-forwarded-for"] {
        assert!(seen.contains_key(stays), "{stays}");
    }
}

#[test]
fn forwarding_headers_are_appended_or_replaced() {
    let (seen, _) = through(&[
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-proto", "gopher"),
    ]);
    assert_eq!(
        seen.get_all("x-forwarded-for").iter().collect::<Vec<_>>(),
        ["1.1.1.1, 2.2.2.2, 10.0.0.9"]
    );
    assert_eq!(
        (&seen["x-forwarded-host"], &seen["x-forwarded-proto"]),
        (
            &HeaderValue::from_static("a.test"),
            &HeaderValue::from_static("https")
        )
    );
    assert_eq!(through(&[]).0["x-forwarded-for"], "10.0.0.9");
}

#[test]
fn sane_request_ids_are_kept_and_others_made() {
    assert_eq!(
        request_id(&headers(&[("x-request-id", "abc-1.2_3")])),
        "abc-1.2_3"
    );
    for bad in ["", "a b", "<x>", &"x".repeat(129)] {
        let made = request_id(&headers(&[("x-request-id", bad)]));
        assert_eq!(made.len(), 32, "{bad}");
        assert!(made.as_bytes().iter().all(u8::is_ascii_hexdigit));
    }
    assert_ne!(new_request_id(), new_request_id());
}

#[test]
fn mapped_addresses_are_shown_as_ipv4() {
    let client = Client::new("::ffff:10.0.0.9".parse().expect("an address"), 80, false);
    assert_eq!(client.address, "10.0.0.9");
}

#[test]
fn what_a_client_says_of_itself_does_not_get_through() {
    let (seen, _) = through(&[
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("x_real_ip", "1.2.3.4"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-server", "evil"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-ssl", "on"),
        ("x_forwarded-scheme", "ftp"),
        ("x_forwarded_for", "1.2.3.4"),
        ("x_forwarded_proto", "ftp"),
        ("x-forwarded-proto", "ftp"),
        ("x-request_id", "evil"),
        ("x-forwarded-user", "kept"),
        ("x-api_key", "kept"),
        ("fowarded", "kept"),
    ]);
    let mut names: Vec<&str> = seen.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "fowarded",
            "x-api_key",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-forwarded-user",
            "x-request-id"
        ]
    );
    assert_eq!(
        (&seen["x-forwarded-port"], &seen["x-forwarded-proto"]),
        (
            &HeaderValue::from_static("8443"),
            &HeaderValue::from_static("https")
        )
    );
}

#[test]
fn an_upgrade_to_http2_is_taken_out_of_a_list() {
    let left = |value| without_h2c(HeaderValue::from_static(value));
    assert_eq!(left("h2c"), None);
    assert_eq!(left("H2C , "), None);
    assert_eq!(left("h2c, x"), Some(HeaderValue::from_static("x")));
    assert_eq!(left("websocket"), Some(HeaderValue::from_static("websocket")));
}
