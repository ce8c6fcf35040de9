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
    let client = Client::new("10.0.0.9".parse().expect("an address"), true);
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
    let client = Client::new("::ffff:10.0.0.9".parse().expect("an address"), false);
    assert_eq!(client.address, "10.0.0.9");
}
