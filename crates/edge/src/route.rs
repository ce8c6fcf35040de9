//! Host and path → route. Pure: a table and three strings in, a route and the place where the rest of the path
//! begins out.
//!
//! Paths are compared as bytes as they were sent: nothing is decoded and no dot segment is resolved, since the
//! instance sees the same bytes and must not disagree with us on what they mean.

use std::borrow::Cow;
use std::sync::Arc;

use crate::page::Refusal;
use crate::table::{Route, Table};

/// First segment of the path form of a routing key.
const KEY_SEGMENT: &str = "/r/";

/// A route and how much of the path it took.
#[derive(Debug)]
pub(crate) struct Matched<'t> {
    pub(crate) route: &'t Arc<Route>,
    /// Byte offset into the path where the rest begins; the rest is empty or starts with a slash.
    pub(crate) rest_at: usize,
    /// Whether a routing key led here.
    pub(crate) by_key: bool,
}

/// Finds the route for a request. `host` is [`canonical`]; `key` is the value of `X-Routing-Key`.
pub(crate) fn find<'t>(
    table: &'t Table,
    host: &str,
    path: &str,
    key: Option<&[u8]>,
) -> Result<Matched<'t>, Refusal> {
    if table.is_public_host(host)
        && let Some(found) = by_key(table, path, key)
    {
        return found;
    }
    let Some(routes) = table.host(host) else {
        return Err(Refusal::NoSuchApp {
            host: host.to_owned(),
        });
    };
    longest(routes, path).map_or_else(
        || {
            Err(Refusal::NoSuchRoute {
                host: host.to_owned(),
                path: path.to_owned(),
            })
        },
        |(route, rest_at)| {
            Ok(Matched {
                route,
                rest_at,
                by_key: false,
            })
        },
    )
}

/// `None` when the request carries no key.
fn by_key<'t>(table: &'t Table, path: &str, key: Option<&[u8]>) -> Option<Result<Matched<'t>, Refusal>> {
    let (routes, begin) = if let Some(key) = key {
        (std::str::from_utf8(key).ok().and_then(|key| table.key(key)), 0)
    } else {
        let tail = path.strip_prefix(KEY_SEGMENT)?;
        let length = tail.find('/').unwrap_or(tail.len());
        let key_end = KEY_SEGMENT.len() + length;
        // Clients append "/file" to a base that already ends with a slash: many slashes count as one.
        let slashes = path[key_end..].bytes().take_while(|byte| *byte == b'/').count();
        (table.key(&tail[..length]), key_end + slashes.saturating_sub(1))
    };
    let Some(routes) = routes else {
        return Some(Err(Refusal::NoSuchSandbox));
    };
    Some(
        longest(routes, &path[begin..]).map_or(Err(Refusal::NoSuchSandbox), |(route, rest_at)| {
            Ok(Matched {
                route,
                rest_at: begin + rest_at,
                by_key: true,
            })
        }),
    )
}

/// The first match of routes sorted longest first, and the length of its prefix.
fn longest<'t>(routes: &'t [Arc<Route>], path: &str) -> Option<(&'t Arc<Route>, usize)> {
    routes.iter().find_map(|route| {
        let rest = path.strip_prefix(&*route.prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((route, route.prefix.len()))
    })
}

/// A `Host` header or authority without user, port and final dot, in lower case.
pub(crate) fn canonical(authority: &str) -> Cow<'_, str> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if let Some(bracketed) = host.strip_prefix('[') {
        bracketed.split_once(']').map_or(host, |(address, _)| address)
    } else {
        host.split_once(':').map_or(host, |(name, _)| name)
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// What the instance is asked for: the rest of the path, with a slash in front, and the query.
/// `None`: the target can go on as it is.
pub(crate) fn stripped(path: &str, query: Option<&str>, rest_at: usize) -> Option<String> {
    if rest_at == 0 && path.starts_with('/') {
        return None;
    }
    let rest = path.get(rest_at..).unwrap_or_default();
    let mut target = String::with_capacity(rest.len() + query.map_or(0, |query| query.len() + 1) + 1);
    if !rest.starts_with('/') {
        target.push('/');
    }
    target.push_str(rest);
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    Some(target)
}

#[cfg(test)]
mod tests;
