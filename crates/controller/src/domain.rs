//! Custom domains become ACTIVE once they lead here.
//!
//! Whether one does is asked of a [`Resolver`]: it leads here when it has an address in common with the name its
//! owner was told to point it to. No answer says nothing: then everything stays as it is. Below `localhost` there is no
//! DNS to ask: there any custom domain is active at once, since the machine's own resolver decides where names lead.

use std::{collections::HashSet, fmt::Debug, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use tram_store::{Store, filter, intent::DomainEdit, record::Domain};
use tram_types::{
    Clock,
    status::{DomainStatus, DomainType},
};

use crate::{Deps, driver, error::Error};

/// Between two rounds: DNS changes take minutes to be seen anyway.
const PERIOD: Duration = Duration::from_secs(60);
/// Longest time one name may take: a resolver that hangs must not hold back the others for long.
const LOOKUP: Duration = Duration::from_secs(5);

/// Looks names up.
#[async_trait]
pub trait Resolver: Send + Sync + Debug {
    /// The addresses of a host name; empty when it has none.
    ///
    /// # Errors
    /// [`Unanswered`], which says nothing about the name.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unanswered>;
}

/// The DNS gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DNS gave no answer")]
pub struct Unanswered;

/// The machine's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unanswered> {
        let looked_up = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, 443))).await;
        match looked_up {
            Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
            Ok(Err(error)) if is_no_answer(&error) => Err(Unanswered),
            Ok(Err(_)) => Ok(Vec::new()),
            Err(_) => Err(Unanswered),
        }
    }
}

/// Whether a failed look-up says that no server answered, not that there is no such name. The standard library keeps
/// the resolver's words alone: these are those of glibc and musl for `EAI_AGAIN`
/// and `EAI_FAIL`.
fn is_no_answer(error: &std::io::Error) -> bool {
    let words = error.to_string();
    ["Temporary failure", "Non-recoverable", "Try again"]
        .iter()
        .any(|known| words.contains(known))
}

/// Whether a domain leads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Here,
    /// It does not.
    Elsewhere,
    /// The DNS gave no answer: whatever is known of the domain stays.
    Unknown,
}

/// Finds out whether a custom domain leads here, and records it. The reconciler and who asks for a look at once
/// share it.
#[derive(Debug, Clone)]
pub struct Checker {
    store: Store,
    resolver: Arc<dyn Resolver>,
    clock: Arc<dyn Clock>,
    /// Under `localhost` nothing is asked.
    local: bool,
}

impl Checker {
    /// For domains that lead to names below `base_domain`.
    #[must_use]
    pub fn new(store: Store, resolver: Arc<dyn Resolver>, clock: Arc<dyn Clock>, base_domain: &str) -> Self {
        Self {
            store,
            resolver,
            clock,
            local: is_local(base_domain),
        }
    }

    async fn verdict(&self, domain: &Domain) -> Result<Verdict, Unanswered> {
        if self.local {
            return Ok(Verdict::Here);
        }
        let ours = self.resolver.addresses(&domain.intended_cname).await?;
        let ours: HashSet<IpAddr> = ours.into_iter().collect();
        let theirs = self.resolver.addresses(&domain.name).await?;
        match theirs.iter().any(|address| ours.contains(address)) {
            true => Ok(Verdict::Here),
            false => Ok(Verdict::Elsewhere),
        }
    }

    /// Looks, and records what was found. One that leads here is active; one that was active and no longer does has
    /// an error; one that never did goes on waiting.
    ///
    /// # Errors
    /// Those of the store; a domain that is gone is none.
    pub async fn check(&self, domain: &Domain) -> Result<Verdict, tram_store::Error> {
        let Ok(verdict) = self.verdict(domain).await else {
            return Ok(Verdict::Unknown);
        };
        let edit = if verdict == Verdict::Here {
            DomainEdit {
                status: Some(DomainStatus::Active),
                messages: Some(Vec::new()),
                verified_at: Some(Some(self.clock.now())),
                ..DomainEdit::default()
            }
        } else {
            let message = format!(
                "{} does not lead here yet: add a CNAME record that points to {}",
                domain.name, domain.intended_cname
            );
            let was_active = domain.status == DomainStatus::Active;
            if domain.messages == [message.clone()] && !was_active {
                return Ok(verdict);
            }
            DomainEdit {
                status: was_active.then_some(DomainStatus::Error),
                messages: Some(vec![message]),
                ..DomainEdit::default()
            }
        };
        match self
            .store
            .update_domain(domain.organization_id, domain.id, &edit)
            .await
        {
            Ok(_) | Err(tram_store::Error::NotFound { .. }) => Ok(verdict),
            Err(error) => Err(error),
        }
    }
}

/// Checks custom domains.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    checker: Checker,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Domains that lead here now.
    pub activated: usize,
    /// Domains that do not yet.
    pub waiting: usize,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        self.activated == 0
    }
}

/// Whether the DNS has nothing to say about names below this one.
fn is_local(base_domain: &str) -> bool {
    base_domain == "localhost" || base_domain.ends_with(".localhost")
}

impl Reconciler {
    /// With the base domain of the settings.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            checker: Checker::new(
                deps.store.clone(),
                Arc::clone(&deps.resolver),
                Arc::clone(&deps.clock),
                &deps.settings.base_domain,
            ),
        }
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "domain"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn run(&self) -> Result<Report, Error> {
        let filter = filter::Domains {
            kinds: vec![DomainType::Custom],
            statuses: vec![DomainStatus::Pending, DomainStatus::Error],
            ..filter::Domains::default()
        };
        let waiting = self
            .store
            .list_domains_unscoped(&filter, filter::Page::largest())
            .await
            .map_err(Error::store("read the domains that wait"))?;
        let mut report = Report::default();
        for domain in &waiting.items {
            let checked = self.checker.check(domain).await;
            match checked.map_err(Error::store("record the state of a domain"))? {
                Verdict::Here => report.activated += 1,
                Verdict::Elsewhere | Verdict::Unknown => report.waiting += 1,
            }
        }
        Ok(report)
    }
}
