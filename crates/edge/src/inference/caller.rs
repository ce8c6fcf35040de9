//! Who asks. The engine treats tenants alike and shares no cache between them, so what it hears must be true.
//!
//! Our own front (the API process) says the tenant, and proves itself by a secret that it gave over the control link.
//! Anybody else is who they are seen to be: the credential by which the route let them in, else their address. What they
//! say of themselves in headers of ours is taken off.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use tram_types::CredentialId;
use tram_types::inference::{MODEL_HEADER, PRIORITY_HEADER, QUESTION_HEADER, TENANT_HEADER};
use tram_types::routing::SecretHash;
use uuid::Uuid;

use crate::admit::X_API_KEY;
use crate::forwarded::X_TRAM_FRONT;
use crate::secret::Compiled;
use crate::table::Security;

use super::told::{RESUME, TELL};

/// Secrets of fronts that are believed at a time: a control plane that starts anew brings a new one, and what it asked
/// before may still be on its way.
const FRONTS_MAX: usize = 4;

/// How long a front that is not known is waited for: a control plane introduces itself within a fraction of a second after
/// an edge has begun.
const INTRODUCTION: std::time::Duration = std::time::Duration::from_secs(2);

/// Bytes of a hash that name a credential: enough to be the only one with it.
const NAME_BYTES: usize = 12;

/// Bits of an IPv6 address that one subscriber has for its own (RFC 6177).
const NETWORK_V6: u128 = !0 << 64;

/// The fronts that are believed.
#[derive(Debug, Default)]
pub(crate) struct Fronts {
    known: Mutex<Vec<Compiled>>,
    /// Another one is believed.
    more: tokio::sync::Notify,
}

impl Fronts {
    /// From now on whoever has this secret is believed.
    pub(crate) fn trust(&self, secret: &SecretHash) {
        let Some(secret) = Compiled::new(secret) else {
            tracing::warn!("a front's secret that is no salted SHA-256 was passed over");
            return;
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= FRONTS_MAX {
            known.remove(0);
        }
        known.push(secret);
        drop(known);
        self.more.notify_waiters();
    }

    /// Whether whoever shows this secret is believed, now or within [`INTRODUCTION`]: an edge that began anew gets requests
    /// before it is told whom to believe, and our own front must not pass for a stranger.
    pub(crate) async fn know_soon(&self, secret: &[u8]) -> bool {
        let until = tokio::time::Instant::now() + INTRODUCTION;
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if self.know(secret) {
                return true;
            }
            if tokio::time::timeout_at(until, more).await.is_err() {
                return false;
            }
        }
    }

    fn know(&self, secret: &[u8]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|front| front.matches(secret))
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// As the engine hears it.
    tenant: HeaderValue,
    priority: Option<HeaderValue>,
    /// As our front vouches for it.
    pub(super) credential: Option<CredentialId>,
    pub(super) question_id: Uuid,
    /// What the question called the model, where the engine has another name for it.
    pub(super) model: Option<String>,
}

impl Caller {
    /// Takes what is said of the caller off the headers, and believes what is proved. `security`: what let it in.
    pub(crate) fn take(
        fronts: &Fronts,
        headers: &mut HeaderMap,
        address: IpAddr,
        security: Option<&Security>,
    ) -> Self {
        let proof = headers.remove(X_TRAM_FRONT);
        let proved = proof.is_some_and(|proof| fronts.know(proof.as_bytes()));
        let said = |headers: &mut HeaderMap, name| headers.remove(HeaderName::from_static(name));
        let tenant = said(headers, TENANT_HEADER).filter(|_| proved);
        let priority = said(headers, PRIORITY_HEADER).filter(|_| proved);
        let question = said(headers, QUESTION_HEADER).filter(|_| proved);
        let model = said(headers, MODEL_HEADER).filter(|_| proved);
        said(headers, TELL);
        said(headers, RESUME);
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        Self {
            credential: tenant.as_ref().and_then(text).and_then(|text| text.parse().ok()),
            question_id: question
                .as_ref()
                .and_then(text)
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(Uuid::new_v4),
            model: model.as_ref().and_then(text),
            tenant: tenant.unwrap_or_else(|| seen(headers, address, security)),
            priority,
        }
    }

    /// Tells the engine.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static(TENANT_HEADER), self.tenant.clone());
        if let Some(priority) = &self.priority {
            headers.insert(HeaderName::from_static(PRIORITY_HEADER), priority.clone());
        }
    }

    /// The same for all that share caches.
    pub(super) fn scope(&self) -> &[u8] {
        self.tenant.as_bytes()
    }
}

/// Who somebody is who reached the service's own URL.
fn seen(headers: &HeaderMap, address: IpAddr, security: Option<&Security>) -> HeaderValue {
    let name = match security.and_then(|security| credential(headers, security)) {
        Some(credential) => format!("key:{}", hex::encode(&Sha256::digest(credential)[..NAME_BYTES])),
        None => match address {
            IpAddr::V4(address) => format!("address:{address}"),
            IpAddr::V6(address) => {
                let network = std::net::Ipv6Addr::from_bits(address.to_bits() & NETWORK_V6);
                format!("address:{network}/64")
            }
        },
    };
    HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static("unknown"))
}

/// What let the caller in, without what may be written in several ways: one who has one credential is one.
fn credential<'h>(headers: &'h HeaderMap, security: &Security) -> Option<&'h [u8]> {
    let key = headers.get(X_API_KEY).map(HeaderValue::as_bytes);
    if let Some(key) = key.filter(|key| security.api_keys.iter().any(|known| known.matches(key))) {
        return Some(key);
    }
    let (_, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some(credentials.trim().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_a_front_that_proves_itself_is_believed() {
        let fronts = Fronts::default();
        fronts.trust(&crate::secret::hash("s3cret"));
        let id = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
        let said = |proof: &'static str| {
            headers(&[
                (TENANT_HEADER, id),
                (PRIORITY_HEADER, "high"),
                (QUESTION_HEADER, id),
                (X_TRAM_FRONT.as_str().to_owned().leak(), proof),
                (MODEL_HEADER, "alias"),
                (TELL, "tokens"),
                (RESUME, "1"),
                ("accept", "a"),
            ])
        };
        let mut own = said("s3cret");
        let caller = Caller::take(&fronts, &mut own, address("127.0.0.1"), None);
        assert_eq!(own.len(), 1, "{own:?}");
        assert_eq!(caller.credential, id.parse().ok());
        assert_eq!(caller.model.as_deref(), Some("alias"));
        assert_eq!(caller.question_id, id.parse::<Uuid>().expect("a UUID"));
        caller.tell(&mut own);
        assert_eq!(
            (&own[TENANT_HEADER], &own[PRIORITY_HEADER]),
            (&id.parse().unwrap(), &"high".parse().unwrap())
        );

        let mut forged = said("s3cres");
        let caller = Caller::take(&fronts, &mut forged, address("10.1.2.3"), None);
        assert_eq!(forged.len(), 1, "{forged:?}");
        assert_eq!((caller.credential, caller.priority.is_none()), (None, true));
        assert_ne!(caller.question_id.to_string(), id);
        assert_eq!(caller.model, None);
        assert_eq!(caller.tenant, "address:10.1.2.3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_front_that_introduces_itself_late_is_waited_for() {
        let fronts = Fronts::default();
        let late = async {
            tokio::time::sleep(INTRODUCTION / 2).await;
            fronts.trust(&crate::secret::hash("other"));
            tokio::task::yield_now().await;
            fronts.trust(&crate::secret::hash("s3cret"));
        };
        let (known, ()) = tokio::join!(fronts.know_soon(b"s3cret"), late);
        assert!(known);
        assert!(!fronts.know_soon(b"forged").await, "and a stranger not for ever");
    }

    #[test]
    fn one_subscriber_and_one_credential_are_one() {
        let of = |text| seen(&HeaderMap::new(), address(text), None);
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        let security = Security {
            basic_auths: vec![],
            api_keys: vec![Compiled::new(&crate::secret::hash("k")).expect("a hash")],
        };
        let of =
            |pairs: &[(&'static str, &'static str)]| seen(&headers(pairs), address("::1"), Some(&security));
        let one = of(&[("authorization", "Bearer k")]);
        assert_eq!(one, of(&[("authorization", "bEARER  k ")]));
        assert_eq!(one, of(&[("x-api-key", "k"), ("authorization", "Bearer other")]));
        assert_eq!(one, of(&[("x-api-key", "wrong"), ("authorization", "Bearer k")]));
    }

    #[test]
    fn the_newest_fronts_are_believed() {
        let fronts = Fronts::default();
        for number in 0..=FRONTS_MAX {
            fronts.trust(&crate::secret::hash(&number.to_string()));
        }
        assert!(!fronts.know(b"0") && fronts.know(b"1") && fronts.know(b"4"));
    }
}
