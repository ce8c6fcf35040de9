//! Custom domains become ACTIVE once they lead here.
//!
//! Whether one does is asked of a [`Resolver`]: it leads here when it has an address in common with the name its
//! owner was told to point it to. Below `localhost` there is no DNS to ask: there any custom domain is active at
//! once, since the machine's own resolver decides where names lead.

use std::{collections::HashSet, fmt::Debug, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{
    Notify,
    broadcast::{Receiver, error::RecvError},
};
use tokio_util::sync::CancellationToken;
use tram_store::{Change, Store, filter, intent::DomainEdit, record::Domain};
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
    async fn addresses(&self, host: &str) -> Vec<IpAddr>;
}

/// The machine's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str) -> Vec<IpAddr> {
        let looked_up = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, 443))).await;
        match looked_up {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

/// Checks custom domains.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    resolver: Arc<dyn Resolver>,
    clock: Arc<dyn Clock>,
    /// Under `localhost` nothing is asked.
    local: bool,
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
            resolver: Arc::clone(&deps.resolver),
            clock: Arc::clone(&deps.clock),
            local: is_local(&deps.settings.base_domain),
        }
    }

    async fn leads_here(&self, domain: &Domain) -> bool {
        if self.local {
            return true;
        }
        let ours: HashSet<IpAddr> = self
            .resolver
            .addresses(&domain.intended_cname)
            .await
            .into_iter()
            .collect();
        let theirs = self.resolver.addresses(&domain.name).await;
        theirs.iter().any(|address| ours.contains(address))
    }

    async fn check(&self, domain: &Domain) -> Result<bool, Error> {
        let edit = if self.leads_here(domain).await {
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
            if domain.messages == [message.clone()] {
                return Ok(false);
            }
            DomainEdit {
                messages: Some(vec![message]),
                ..DomainEdit::default()
            }
        };
        let active = edit.status.is_some();
        match self
            .store
            .update_domain(domain.organization_id, domain.id, &edit)
            .await
        {
            Ok(_) => Ok(active),
            Err(tram_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(Error::store("record the state of a domain")(error)),
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
            if self.check(domain).await? {
                report.activated += 1;
            } else {
                report.waiting += 1;
            }
        }
        Ok(report)
    }
}

/// Wakes the reconciler when a domain changes, until `cancel`.
pub(crate) async fn follow_store(
    mut changes: Receiver<Change>,
    signal: Arc<Notify>,
    cancel: CancellationToken,
) {
    loop {
        let change = tokio::select! {
            () = cancel.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Ok(Change::Domain(_)) | Err(RecvError::Lagged(_)) => signal.notify_one(),
            Ok(Change::Service(_) | Change::App(_) | Change::Secret(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
