//! The headers that change on the way: hop-by-hop ones go, `X-Forwarded-*` and `X-Request-Id` come.
//!
//! `X-Forwarded-For` is appended to, so its last element is the peer that we saw ourselves; `X-Forwarded-Host` and
//! `X-Forwarded-Proto` are replaced, so an instance can trust them.

use std::cell::Cell;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use uuid::Uuid;

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ROUTING_KEY: HeaderName = HeaderName::from_static("x-routing-key");
/// By which our own front proves itself to the edge: the secret that it gave over the control link.
pub(crate) const X_TRAM_FRONT: HeaderName = HeaderName::from_static("x-tram-front");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What clients may not say of themselves, in any spelling: what we do not set an instance would take from them.
const FOREIGN: [&str; 8] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-real-ip",
    // The proof of our own front, which no instance may see.
    "x-tram-front",
];

/// What we say ourselves. Servers that hand headers on as CGI variables take an underscore for a hyphen, so these
/// are taken out when they are spelled in another way.
const OURS: [&str; 4] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// Longer request ids are not ids.
const REQUEST_ID_MAX_BYTES: usize = 128;

/// What every request of one connection says of its client, made once.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) ip: IpAddr,
    address: HeaderValue,
    /// Where it came in.
    port: HeaderValue,
    pub(crate) tls: bool,
}

impl Client {
    /// `port`: of ours, to which the client connected.
    pub(crate) fn new(ip: IpAddr, port: u16, tls: bool) -> Self {
        let ip = ip.to_canonical();
        let address = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            ip,
            address,
            port: HeaderValue::from(port),
            tls,
        }
    }
}

/// Takes out what belongs to one connection alone (RFC 9110, 7.6.1). `Trailer` stays: trailers are passed on, and over
/// HTTP/1.1 only those that it names. Returns the `Upgrade` that was asked for.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    // Seldom any: one look at the names costs less than to look each of them up.
    if !headers.keys().any(is_hop_by_hop) {
        return None;
    }
    let mut upgrade = None;
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .collect();
        for name in named {
            // A client must not make us forget who it speaks to, nor who it is.
            if name == UPGRADE {
                upgrade = headers.remove(UPGRADE);
            } else if name != http::header::HOST
                && name != http::header::AUTHORIZATION
                && name != http::header::CONTENT_LENGTH
            {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    upgrade
}

/// Whether [`strip_hop_by_hop`] has something to do about a header.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Prepares a request's headers for an instance. Returns the upgrade asked for.
pub(crate) fn request(
    headers: &mut HeaderMap,
    client: &Client,
    host: HeaderValue,
    id: &HeaderValue,
) -> Option<HeaderValue> {
    let trailers_wanted = headers.get(TE).is_some_and(|value| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        })
    });
    let upgrade = strip_hop_by_hop(headers);
    headers.remove(TE);
    if trailers_wanted {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    strip_forged(headers);
    // The edge itself answers 100 when the instance begins to take the body.
    headers.remove(EXPECT);
    let for_value = match headers.get(X_FORWARDED_FOR) {
        None => client.address.clone(),
        Some(_) => append(headers, &client.address),
    };
    headers.insert(X_FORWARDED_FOR, for_value);
    headers.insert(X_FORWARDED_HOST, host);
    headers.insert(
        X_FORWARDED_PROTO,
        HeaderValue::from_static(if client.tls { "https" } else { "http" }),
    );
    headers.insert(X_FORWARDED_PORT, client.port.clone());
    headers.insert(X_REQUEST_ID, id.clone());
    upgrade
}

/// Takes out what only a proxy may say.
fn strip_forged(headers: &mut HeaderMap) {
    // Seldom any: looked at without a copy first.
    if headers.keys().any(is_forged) {
        let forged: Vec<HeaderName> = headers.keys().filter(|name| is_forged(name)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
}

fn is_forged(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.starts_with(['f', 'x']) {
        return false;
    }
    let is = |other: &&str| {
        name.len() == other.len()
            && name
                .bytes()
                .zip(other.bytes())
                .all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    FOREIGN.iter().any(is) || OURS.iter().any(|ours| *ours != name && is(ours))
}

/// An `Upgrade` without the upgrade to HTTP/2, which would tunnel requests past the stages.
pub(crate) fn without_h2c(upgrade: HeaderValue) -> Option<HeaderValue> {
    let text = upgrade.to_str().ok()?;
    let is_h2c = |protocol: &&str| protocol.trim().eq_ignore_ascii_case("h2c");
    if !text.split(',').any(|protocol| is_h2c(&protocol)) {
        return Some(upgrade);
    }
    let others: Vec<&str> = text
        .split(',')
        .filter(|protocol| !is_h2c(protocol) && !protocol.trim().is_empty())
        .collect();
    HeaderValue::from_str(others.join(",").trim())
        .ok()
        .filter(|left| !left.is_empty())
}

fn append(headers: &HeaderMap, address: &HeaderValue) -> HeaderValue {
    let mut all = BytesMut::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(address.as_bytes());
    HeaderValue::from_maybe_shared(all.freeze()).unwrap_or_else(|_| address.clone())
}

/// The client's own id when it is sane, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(X_REQUEST_ID) {
        Some(id) if is_sane(id.as_bytes()) => id.clone(),
        _ => new_request_id(),
    }
}

fn is_sane(id: &[u8]) -> bool {
    (1..=REQUEST_ID_MAX_BYTES).contains(&id.len())
        && id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

thread_local! {
    /// State of the id generator. Ids correlate log lines and are no secrets, so one seed from the system and a
    /// fast generator will do.
    static RANDOM: Cell<(u64, u64)> = Cell::new(Uuid::new_v4().as_u64_pair());
}

/// 64 random bits (xoroshiro128+).
pub(crate) fn random() -> u64 {
    RANDOM.with(|state| {
        let (a, mut b) = state.get();
        let out = a.wrapping_add(b);
        b ^= a;
        state.set((a.rotate_left(24) ^ b ^ (b << 16), b.rotate_left(37)));
        out
    })
}

pub(crate) fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 32];
    let bytes = [random().to_be_bytes(), random().to_be_bytes()];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes.as_flattened()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text))
        .unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests;
