//! May this request go on? Form, size and credentials, before anything is spent on it.
//!
//! What we rely on hyper for: it refuses obsolete line folding, spaces before a colon, control bytes in names and
//! values, unequal `Content-Length`s, a `Transfer-Encoding` that does not end in `chunked` or comes in HTTP/1.0, bad
//! chunk sizes, and heads beyond [`HEAD_MAX_BYTES`] or 100 lines. Where both lengths are given it drops
//! `Content-Length`, as RFC 9112 allows, and reads by chunks. Bodies are taken apart and framed anew, so no byte of a
//! client's framing reaches an instance. What hyper tolerates and we do not: several or no `Host`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::{HeaderMap, Method, Request};

use crate::page::Refusal;
use crate::table::Security;

/// Longest request head taken: eight times what browsers send with full cookies.
pub(crate) const HEAD_MAX_BYTES: usize = 64 * 1024;

/// The same for HTTP/2, whose limit is a 32-bit number.
pub(crate) const H2_HEAD_MAX_BYTES: u32 = 64 * 1024;

/// Longest request target taken; common servers behind us stop at 8 KiB.
pub(crate) const URI_MAX_BYTES: usize = 16 * 1024;

pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Refuses requests whose form another server might read differently, and returns the authority they name.
pub(crate) fn form<B>(request: &Request<B>) -> Result<&str, Refusal> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        return Err(Refusal::NotAnOrigin);
    }
    if request
        .uri()
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > URI_MAX_BYTES)
    {
        return Err(Refusal::UriTooLong);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::NoHost);
    }
    request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| header.and_then(|host| host.to_str().ok()))
        .filter(|authority| is_authority(authority))
        .ok_or(Refusal::NoHost)
}

/// A host name or address with an optional port: no user, and nothing that could end a header or a path.
fn is_authority(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        })
}

/// Lets in whoever satisfies any one credential of the route.
pub(crate) fn authorise(security: &Security, headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = || Refusal::Unauthorized {
        basic: !security.basic_auths.is_empty(),
        api_key: !security.api_keys.is_empty(),
    };
    let key_matches = |key: &[u8]| security.api_keys.iter().any(|known| known.matches(key));
    if headers
        .get(X_API_KEY)
        .is_some_and(|key| key_matches(key.as_bytes()))
    {
        return Ok(());
    }
    let authorization = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(refused)?;
    let (scheme, credentials) = authorization.split_once(' ').ok_or_else(refused)?;
    let credentials = credentials.trim();
    let admitted = if scheme.eq_ignore_ascii_case("bearer") {
        key_matches(credentials.as_bytes())
    } else if scheme.eq_ignore_ascii_case("basic") {
        basic_matches(security, credentials)
    } else {
        false
    };
    if admitted { Ok(()) } else { Err(refused()) }
}

fn basic_matches(security: &Security, credentials: &str) -> bool {
    let Ok(decoded) = BASE64_STANDARD.decode(credentials) else {
        return false;
    };
    let Some(colon) = decoded.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let (username, password) = (&decoded[..colon], &decoded[colon + 1..]);
    // All are looked at, and both halves of each, so that the time tells nothing of which names there are.
    security.basic_auths.iter().fold(false, |found, (name, hash)| {
        found | (is_same(name.as_bytes(), username) & hash.matches(password))
    })
}

/// Compares without an early exit, but for the length.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |all, (a, b)| all | (a ^ b));
    (a.len() == b.len()) & (std::hint::black_box(difference) == 0)
}

#[cfg(test)]
mod tests;
