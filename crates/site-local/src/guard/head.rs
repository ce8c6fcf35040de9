//! The head of a request: whether it may be carried on, and placeholders replaced by values.
//!
//! Pure, so that it can be attacked in tests. The one design choice to know: what goes on is written anew from what was
//! understood, never copied, so that nothing between the lines (a second length, a header inside a value) reaches the
//! other side.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode, Uri};

use super::HEAD_BYTES_MAX;

/// Headers that speak of one connection and not of the request.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];
const BASIC: &str = "Basic ";

/// Why a request is not carried on; the text is for the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

/// A placeholder and what goes in its place.
pub(super) struct Replacement {
    pub(super) placeholder: String,
    pub(super) value: String,
}

/// Checks that a request is for the host that the connection was opened for, and for nothing else.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    host: &str,
    port: u16,
) -> Result<(), Refusal> {
    let bad = |message: &str| Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    // What TRACE sends comes back as it arrived, values and all.
    if *method == Method::CONNECT || *method == Method::TRACE || method.as_str() == "TRACK" {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{method} is not possible with a host that secrets are bound to"),
        ));
    }
    let mut named = headers.get_all(header::HOST).iter();
    let (Some(first), None) = (named.next(), named.next()) else {
        return bad("a request must name its host once");
    };
    let Some(authority) = first
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Authority>().ok())
    else {
        return bad("the request's Host header cannot be read");
    };
    for authority in [Some(&authority), uri.authority()].into_iter().flatten() {
        let other_port = authority.port_u16().is_some_and(|named| named != port);
        let garbled = authority.as_str().contains('@');
        if !authority.host().eq_ignore_ascii_case(host) || other_port || garbled {
            return Err(Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!("this connection was opened for {host}, and the request is for another host"),
            ));
        }
    }
    if uri
        .scheme()
        .is_some_and(|scheme| *scheme != http::uri::Scheme::HTTPS)
    {
        return bad("the request's address must begin with https://");
    }
    Ok(())
}

/// Whether a request asks to go on as a WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let says = |name: HeaderName, word: &str| {
        headers.get_all(name).iter().any(|value| {
            let mut words = value.to_str().unwrap_or_default().split(',');
            words.any(|one| one.trim().eq_ignore_ascii_case(word))
        })
    };
    says(header::CONNECTION, "upgrade") && says(header::UPGRADE, "websocket")
}

/// Takes out what speaks of the connection alone; a WebSocket's wish is put back.
pub(super) fn strip(headers: &mut HeaderMap, websocket: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // What frames the message cannot be called a matter of the connection.
    for name in named
        .iter()
        .filter(|name| **name != header::CONTENT_LENGTH && **name != header::HOST)
    {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Whether the head holds this placeholder where it would be replaced.
pub(super) fn mentions(uri: &Uri, headers: &HeaderMap, placeholder: &str) -> bool {
    uri.path_and_query()
        .is_some_and(|path| path.as_str().contains(placeholder))
        || headers.values().any(|value| {
            contains(value.as_bytes(), placeholder.as_bytes())
                || basic(value).is_some_and(|text| text.contains(placeholder))
        })
}

/// Puts values in place of their placeholders: in the values of headers, in what Basic authentication wraps, and, as
/// addresses are written, in path and query.
pub(super) fn fill(
    uri: &Uri,
    headers: &mut HeaderMap,
    replacements: &[Replacement],
) -> Result<PathAndQuery, Refusal> {
    let unfit = || Refusal::new(StatusCode::BAD_GATEWAY, "the secret does not fit into a request");
    let too_large = || {
        Refusal::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "with the values of its secrets the request's head is too large",
        )
    };
    let pairs: Vec<(&[u8], &[u8])> = replacements
        .iter()
        .map(|one| (one.placeholder.as_bytes(), one.value.as_bytes()))
        .collect();
    let is_named = |text: &[u8]| pairs.iter().any(|(placeholder, _)| contains(text, placeholder));
    let mut left = HEAD_BYTES_MAX;
    for (name, value) in headers.iter_mut() {
        if *name == header::HOST {
            continue;
        }
        if let Some(text) = basic(value).filter(|text| is_named(text.as_bytes())) {
            let filled = put(text.as_bytes(), &pairs, &mut left).ok_or_else(too_large)?;
            let filled = STANDARD.encode(filled);
            *value = HeaderValue::from_str(&format!("{BASIC}{filled}")).map_err(|_| unfit())?;
            value.set_sensitive(true);
        } else if is_named(value.as_bytes()) {
            let filled = put(value.as_bytes(), &pairs, &mut left).ok_or_else(too_large)?;
            // Refuses line ends and other control characters, whatever was stored.
            *value = HeaderValue::from_bytes(&filled).map_err(|_| unfit())?;
            value.set_sensitive(true);
        }
    }
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !is_named(target.as_bytes()) {
        return target.parse().map_err(|_| unfit());
    }
    let values: Vec<String> = replacements.iter().map(|one| escaped(&one.value)).collect();
    let pairs: Vec<(&[u8], &[u8])> = replacements
        .iter()
        .zip(&values)
        .map(|(one, value)| (one.placeholder.as_bytes(), value.as_bytes()))
        .collect();
    let filled = put(target.as_bytes(), &pairs, &mut left).ok_or_else(too_large)?;
    PathAndQuery::try_from(filled).map_err(|_| unfit())
}

/// Puts the second of each pair where the first stands, in one pass, so that what was put in is not looked at again; one
/// value that names another would grow without end. `left`: bytes that may be written in all, `None` when they are more.
fn put(text: &[u8], pairs: &[(&[u8], &[u8])], left: &mut usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.first() {
        let hit = pairs.iter().find(|(from, _)| rest.starts_with(from));
        let (add, skip) = hit.map_or((std::slice::from_ref(first), 1), |(from, to)| (*to, from.len()));
        *left = left.checked_sub(add.len())?;
        out.extend_from_slice(add);
        rest = rest.get(skip.max(1)..)?;
    }
    Some(out)
}

/// Takes values out of the head of an answer, where servers repeat what they were asked, as in a redirect.
pub(super) fn hide(headers: &mut HeaderMap, replacements: &[Replacement]) {
    for (name, value) in headers.iter_mut() {
        // A number that frames the answer, whatever it looks like.
        if *name == header::CONTENT_LENGTH {
            continue;
        }
        for one in replacements {
            for form in [one.value.clone(), escaped(&one.value)] {
                if contains(value.as_bytes(), form.as_bytes()) {
                    let hidden = replace(value.as_bytes(), form.as_bytes(), one.placeholder.as_bytes());
                    // A placeholder is fit for any header.
                    if let Ok(hidden) = HeaderValue::from_bytes(&hidden) {
                        *value = hidden;
                    }
                }
            }
        }
    }
}

/// What Basic authentication wraps.
fn basic(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let (scheme, rest) = text.split_at_checked(BASIC.len())?;
    if !scheme.eq_ignore_ascii_case(BASIC) {
        return None;
    }
    String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()
}

/// As an address is written: all but letters, digits and `-._~` as `%XX`.
fn escaped(value: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    find(text, part).is_some()
}

fn replace(text: &[u8], part: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = find(rest, part) {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        out.extend_from_slice(with);
        rest = after.get(part.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "api.example.org";
    const PLACEHOLDER: &str = "tram-secret-00ff";
    const VALUE: &str = "sk/live +1:x";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn checked(method: &str, uri: &str, hosts: &[&str]) -> Option<u16> {
        let pairs: Vec<(&'static str, &str)> = hosts.iter().map(|host| ("host", *host)).collect();
        let method = method.parse().unwrap();
        check(&method, &uri.parse().unwrap(), &headers(&pairs), HOST, 443)
            .err()
            .map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn a_request_is_for_its_connections_host_and_no_other() {
        assert_eq!(checked("GET", "/", &[HOST]), None);
        assert_eq!(checked("GET", "/", &["API.example.org:443"]), None);
        assert_eq!(checked("GET", "https://api.example.org/x", &[HOST]), None);
        for (uri, hosts, status) in [
            ("/", &[][..], 400),
            ("/", &[HOST, HOST], 400),
            ("/", &[HOST, "evil.example"], 400),
            ("/", &["evil.example"], 421),
            ("/", &["api.example.org.evil.example"], 421),
            ("/", &["api.example.org:8443"], 421),
            ("/", &["evil.example@api.example.org"], 421),
            ("/", &["api.example.org evil.example"], 400),
            ("https://evil.example/", &[HOST], 421),
            ("https://api.example.org/", &["evil.example"], 421),
            ("https://x@api.example.org/", &[HOST], 421),
            ("http://api.example.org/", &[HOST], 400),
        ] {
            assert_eq!(checked("GET", uri, hosts), Some(status), "{uri} {hosts:?}");
        }
        for method in ["CONNECT", "TRACE", "TRACK"] {
            assert_eq!(
                checked(method, "api.example.org:443", &[HOST]),
                Some(405),
                "{method}"
            );
        }
    }

    fn filled(uri: &str, map: &mut HeaderMap, value: &str) -> Result<PathAndQuery, Refusal> {
        let one = Replacement {
            placeholder: PLACEHOLDER.to_owned(),
            value: value.to_owned(),
        };
        fill(&uri.parse().unwrap(), map, &[one])
    }

    #[test]
    fn a_placeholder_is_replaced_in_headers_basic_authentication_path_and_query() {
        let basic = format!("basic {}", STANDARD.encode(format!("user:{PLACEHOLDER}")));
        let mut map = headers(&[
            ("host", HOST),
            ("authorization", &basic),
            ("x-key", &format!("a {PLACEHOLDER} b {PLACEHOLDER}")),
            ("x-other", "tram-secret-00fe"),
        ]);
        let uri = format!("/bot{PLACEHOLDER}/m?key={PLACEHOLDER}");
        assert!(mentions(&uri.parse().unwrap(), &HeaderMap::new(), PLACEHOLDER));
        assert!(mentions(
            &"/".parse().unwrap(),
            &headers(&[("a", &basic)]),
            PLACEHOLDER
        ));
        let target = filled(&uri, &mut map, VALUE).unwrap();
        assert_eq!(
            target.as_str(),
            "/botsk%2Flive%20%2B1%3Ax/m?key=sk%2Flive%20%2B1%3Ax"
        );
        let wrapped = STANDARD.encode(format!("user:{VALUE}"));
        assert_eq!(map["authorization"], format!("Basic {wrapped}"));
        assert_eq!(map["x-key"], format!("a {VALUE} b {VALUE}"));
        assert_eq!(map["x-other"], "tram-secret-00fe");
    }

    #[test]
    fn a_value_cannot_make_another_header() {
        for value in ["a\r\nHost: evil.example", "a\nb", "a\0b"] {
            let mut map = headers(&[("x-key", PLACEHOLDER)]);
            assert_eq!(filled("/", &mut map, value).unwrap_err().status, 502);
            let target = filled(&format!("/{PLACEHOLDER}"), &mut HeaderMap::new(), value).unwrap();
            assert!(!target.as_str().contains(['\r', '\n', '\0']), "{target}");
        }
    }

    #[test]
    fn an_answer_that_repeats_the_value_gives_the_placeholder() {
        let one = Replacement {
            placeholder: PLACEHOLDER.to_owned(),
            value: VALUE.to_owned(),
        };
        let mut map = headers(&[("x-echo", VALUE), ("location", "/x?key=sk%2Flive%20%2B1%3Ax")]);
        hide(&mut map, &[one]);
        assert_eq!(map["x-echo"], PLACEHOLDER);
        assert_eq!(map["location"], format!("/x?key={PLACEHOLDER}"));
    }

    #[test]
    fn what_speaks_of_the_connection_stays_behind() {
        let mut map = headers(&[
            ("connection", "x-gone, Upgrade, HTTP2-Settings, content-length"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("x-gone", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("x-stays", "1"),
        ]);
        assert!(!is_websocket(&map));
        strip(&mut map, false);
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-stays"]);
        let mut socket = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(is_websocket(&socket));
        strip(&mut socket, true);
        assert_eq!(
            (&socket["connection"], &socket["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
    }

    #[test]
    fn values_that_name_other_secrets_do_not_grow() {
        let other = "tram-secret-11ff";
        let replacements = [
            Replacement {
                placeholder: PLACEHOLDER.to_owned(),
                value: other.repeat(90),
            },
            Replacement {
                placeholder: other.to_owned(),
                value: "x".repeat(4096),
            },
        ];
        let mut headers = HeaderMap::new();
        headers.insert("x-one", HeaderValue::from_static(PLACEHOLDER));
        headers.insert("x-two", HeaderValue::from_static(other));
        fill(&Uri::from_static("/"), &mut headers, &replacements).unwrap();
        assert_eq!(
            headers["x-one"],
            other.repeat(90),
            "what was put in stays as it is"
        );
        let many = HeaderValue::from_str(&other.repeat(1000)).unwrap();
        headers.insert("x-three", many);
        let refused = fill(&Uri::from_static("/"), &mut headers, &replacements).unwrap_err();
        assert_eq!(refused.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}
