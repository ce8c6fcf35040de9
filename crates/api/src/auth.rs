//! Who calls, and what they may do.
//!
//! A token comes in `Authorization: Bearer`, or from browsers, whose WebSockets cannot set headers, as the second
//! item of `Sec-WebSocket-Protocol: Bearer, <token>`. Tokens have 256 random bits, so guessing one is hopeless; the
//! limit on failures only bounds the work that a confused or hostile client makes the database do.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::extract::ConnectInfo;
use http::{
    HeaderMap,
    header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
    request::Parts,
};
use tokio::time::{MissedTickBehavior, interval};
use tram_store::record::{Credential, Role};
use tram_types::{CredentialId, FieldViolation, OrganizationId, ProjectId, Timestamp};

use crate::{error::Error, known::Reading, state::ApiState};

/// Name of the WebSocket sub-protocol that carries a token.
pub(crate) const WEBSOCKET_PROTOCOL: &str = "Bearer";
/// Longest text that is looked at as a token; ours have 64 characters.
const TOKEN_MAX_BYTES: usize = 256;
/// Header by which newer clients choose a project.
pub(crate) const PROJECT_HEADER: &str = "x-koyeb-project-id";

/// What an endpoint asks of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Anonymous,
    /// A good token that may look.
    Read,
    /// A good token, whatever it may do: to see which models there are.
    List,
    /// A token that may ask models.
    Ask,
    /// A token whose role may change things, see secrets or run commands.
    Write,
}

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) organization: OrganizationId,
    pub(crate) credential: CredentialId,
    pub(crate) credential_name: String,
    pub(crate) user: String,
    pub(crate) role: Role,
    pub(crate) expires_at: Option<Timestamp>,
    /// The project that the request is limited to, if it says one.
    pub(crate) project: Option<ProjectId>,
}

impl Caller {
    fn new(credential: Credential, headers: &HeaderMap) -> Result<Self, Error> {
        Ok(Self {
            organization: credential.organization_id,
            credential: credential.id,
            credential_name: credential.name,
            user: credential.user_id,
            role: credential.role,
            expires_at: credential.expires_at,
            project: project(headers)?,
        })
    }
}

/// The project that a request is limited to. An empty header is an absent one; any other that is no id must not widen
/// the request to the whole organization.
fn project(headers: &HeaderMap) -> Result<Option<ProjectId>, Error> {
    let Some(given) = headers.get(PROJECT_HEADER).filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    let parsed = given.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| {
        Error::InvalidParameters(vec![FieldViolation::new(
            PROJECT_HEADER,
            "must be the id of a project",
        )])
    })
}

/// How often the token behind a connection that stays open is looked at again: so long does a stream go on after its
/// token was revoked.
const RECHECK_EVERY: Duration = Duration::from_secs(2);

impl Caller {
    /// Waits until the token is no longer good for `access`, for connections that stay open; says why. A store that
    /// does not answer proves nothing: then the next look decides.
    pub(crate) async fn until_refused(&self, api: &ApiState, access: Access) -> Error {
        let mut looks = interval(RECHECK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        loop {
            looks.tick().await;
            match api.store.credential(self.organization, self.credential).await {
                Ok(token) if token.expires_at.is_some_and(|end| end <= api.clock.now()) => {
                    return Error::Unauthenticated("this API token has expired: make a new one");
                }
                Ok(token) if !access.is_given_to(token.role) => {
                    return refusal(token.role);
                }
                Err(tram_store::Error::NotFound { .. }) => {
                    return Error::Unauthenticated("this API token was revoked: use another one");
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl Access {
    /// Whether a token of this role has it.
    const fn is_given_to(self, role: Role) -> bool {
        match role {
            Role::Owner => true,
            Role::ReadOnly => matches!(self, Self::Anonymous | Self::Read | Self::List),
            Role::Models => matches!(self, Self::Anonymous | Self::List | Self::Ask),
        }
    }
}

/// Says that a token of this role may not do what is asked.
const fn refusal(role: Role) -> Error {
    Error::Forbidden(match role {
        Role::Models => "this API token may only ask models: use one whose role is owner",
        Role::Owner | Role::ReadOnly => "this API token may only read: use one whose role is owner",
    })
}

/// Finds out who calls and whether they may.
pub(crate) async fn authenticate(api: &ApiState, parts: &Parts, access: Access) -> Result<Caller, Error> {
    let address = client_address(parts);
    let now = api.clock.now();
    let Some(token) = token(&parts.headers) else {
        return Err(Error::Unauthenticated(
            "give an API token: `Authorization: Bearer <token>`",
        ));
    };
    let hash = tram_store::token_sha256(token);
    api.failures.admit(&address, &hash, now)?;
    let Some(credential) = credential(api, token, &hash, now).await? else {
        api.failures.failed(&address, now);
        return Err(Error::Unauthenticated(
            "this API token is not known or has expired: make a new one, or correct it",
        ));
    };
    if api.failures.succeeded(hash, now) {
        api.store.touch_credential(credential.id, now).await?;
    }
    let caller = Caller::new(credential, &parts.headers)?;
    if !access.is_given_to(caller.role) {
        return Err(refusal(caller.role));
    }
    Ok(caller)
}

/// What is kept of a token, while it is good.
async fn credential(
    api: &ApiState,
    token: &str,
    hash: &str,
    now: Timestamp,
) -> Result<Option<Credential>, Error> {
    let reading = Reading::begin(api.store.revision());
    let known = api.known.credentials.get(reading, hash);
    let is_good = |credential: &Credential| credential.expires_at.is_none_or(|end| end > now);
    if let Some(known) = known.filter(is_good) {
        return Ok(Some(known));
    }
    let found = api.store.credential_by_token(token).await?;
    if let Some(found) = &found {
        api.known
            .credentials
            .keep(reading, hash.to_owned(), found.clone());
    }
    Ok(found)
}

/// The token of a request, wherever it stands.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let offered = || {
        let mut items = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?.split(',');
        let scheme = items.next()?.trim();
        scheme
            .eq_ignore_ascii_case(WEBSOCKET_PROTOCOL)
            .then(|| items.next().map(str::trim))
            .flatten()
    };
    bearer
        .or_else(offered)
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_MAX_BYTES)
}

/// Where a request came from: the peer, or what a proxy of ours says of its own peer. Only peers of this machine or
/// of a private network are taken for proxies, so that a stranger cannot pass for many.
pub(crate) fn client_address(parts: &Parts) -> String {
    let peer = parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map(|peer| peer.0.ip());
    let may_be_proxy = peer.is_none_or(|ip| match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    });
    let forwarded = parts
        .headers
        .get("x-forwarded-for")
        .filter(|_| may_be_proxy)
        .and_then(|value| value.to_str().ok())
        .and_then(|list| list.rsplit(',').next())
        .map(|last| {
            last.trim()
                .chars()
                .take(ADDRESS_MAX_CHARACTERS)
                .collect::<String>()
        })
        .filter(|last| !last.is_empty());
    forwarded.unwrap_or_else(|| peer.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string()))
}

/// Longest text of an address that is remembered: an IPv6 address with its zone fits.
const ADDRESS_MAX_CHARACTERS: usize = 64;
/// Failures that one address may have in a window: a client with a stale token retries a few times a second.
const FAILURES_MAX: u32 = 60;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered; when there are more, the oldest windows are forgotten.
const ADDRESSES_MAX: usize = 4096;
/// Good tokens remembered, which are let through whatever others behind the same address do.
const GOOD_TOKENS_MAX: usize = 1024;

/// How often the use of a token is noted: to the minute is enough to find tokens nobody uses.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Bounds the failed authentications of an address. Keeps hashes of tokens, never tokens.
#[derive(Debug, Default)]
pub struct FailureLimit {
    inner: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    windows: BTreeMap<String, Window>,
    /// Hashes of good tokens with the time their use was last noted.
    good: BTreeMap<String, Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began_at: Timestamp,
    failures: u32,
}

impl FailureLimit {
    /// Refuses an address that failed too often, unless the token was good before.
    fn admit(&self, address: &str, hash: &str, now: Timestamp) -> Result<(), Error> {
        let remembered = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(window) = remembered.windows.get(address) else {
            return Ok(());
        };
        let age = now.since(window.began_at);
        if age >= WINDOW || window.failures < FAILURES_MAX || remembered.good.contains_key(hash) {
            return Ok(());
        }
        Err(Error::TooManyFailures {
            retry_after_seconds: (WINDOW - age).as_secs() + 1,
        })
    }

    fn failed(&self, address: &str, now: Timestamp) {
        let mut remembered = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.windows.len() >= ADDRESSES_MAX && !remembered.windows.contains_key(address) {
            remembered
                .windows
                .retain(|_, window| now.since(window.began_at) < WINDOW);
            if remembered.windows.len() >= ADDRESSES_MAX {
                let oldest = remembered
                    .windows
                    .iter()
                    .min_by_key(|(_, window)| window.began_at);
                let oldest = oldest.map(|(address, _)| address.clone());
                oldest.and_then(|address| remembered.windows.remove(&address));
            }
        }
        let window = remembered.windows.entry(address.to_owned()).or_insert(Window {
            began_at: now,
            failures: 0,
        });
        if now.since(window.began_at) >= WINDOW {
            *window = Window {
                began_at: now,
                failures: 0,
            };
        }
        window.failures = window.failures.saturating_add(1);
    }

    /// Remembers a good token; says whether its use should be noted now.
    fn succeeded(&self, hash: String, now: Timestamp) -> bool {
        let mut remembered = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered
            .good
            .get(&hash)
            .is_some_and(|noted| now.since(*noted) < NOTE_EVERY)
        {
            return false;
        }
        if remembered.good.len() >= GOOD_TOKENS_MAX {
            remembered.good.clear();
        }
        remembered.good.insert(hash, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn a_token_is_found_in_both_places() {
        assert_eq!(token(&headers(AUTHORIZATION, "Bearer abc")), Some("abc"));
        assert_eq!(token(&headers(AUTHORIZATION, "bearer  abc ")), Some("abc"));
        assert_eq!(
            token(&headers(SEC_WEBSOCKET_PROTOCOL, "Bearer, abc")),
            Some("abc")
        );
        for nothing in ["Basic abc", "Bearer ", "Bearer", ""] {
            assert_eq!(token(&headers(AUTHORIZATION, nothing)), None, "{nothing}");
        }
        assert_eq!(token(&headers(SEC_WEBSOCKET_PROTOCOL, "chat, abc")), None);
    }

    #[test]
    fn an_address_that_fails_too_often_waits_and_good_tokens_pass() {
        let limit = FailureLimit::default();
        let now = Timestamp::EPOCH;
        assert!(limit.succeeded("good".to_owned(), now));
        assert!(!limit.succeeded("good".to_owned(), now));
        for _ in 0..FAILURES_MAX {
            assert!(limit.admit("a", "bad", now).is_ok());
            limit.failed("a", now);
        }
        assert!(matches!(
            limit.admit("a", "bad", now),
            Err(Error::TooManyFailures {
                retry_after_seconds: 61
            })
        ));
        assert!(limit.admit("a", "good", now).is_ok());
        assert!(limit.admit("b", "bad", now).is_ok());
        assert!(limit.admit("a", "bad", now.plus(WINDOW)).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = FailureLimit::default();
        for number in 0..ADDRESSES_MAX + 10 {
            limit.failed(&number.to_string(), Timestamp::EPOCH);
        }
        assert_eq!(limit.inner.lock().unwrap().windows.len(), ADDRESSES_MAX);
    }
}
