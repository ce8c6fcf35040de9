//! How many tokens each tenant was served: the measure of fairness.

use std::collections::HashMap;

use super::TenantId;

/// Tenants remembered while they have nothing here. A counter of someone who was away counts for nothing once it is
/// below those who are here, so little is lost; without a bound a stranger who makes names up would fill the memory.
const REMEMBERED_MAX: usize = 4096;

#[derive(Debug, Default, Clone, Copy)]
struct Tenant {
    served: u64,
    /// Requests that wait or run.
    requests: usize,
}

#[derive(Debug, Default)]
pub(super) struct Tenants {
    known: HashMap<TenantId, Tenant>,
    /// What the last one that went away had been served.
    left: u64,
}

impl Tenants {
    /// A request of this tenant arrived.
    pub(super) fn enter(&mut self, id: TenantId) {
        // Of those who are here; or of the last that was, or who had the engine for itself would pay for that when others
        // come, who start at nothing.
        let least = self.active().map(|tenant| tenant.served).min();
        let least = least.unwrap_or(self.left);
        if self.known.len() >= REMEMBERED_MAX {
            self.known.retain(|_, tenant| tenant.requests > 0);
        }
        let tenant = self.known.entry(id).or_default();
        if tenant.requests == 0 {
            tenant.served = tenant.served.max(least);
        }
        tenant.requests += 1;
    }

    /// A request of this tenant is over.
    pub(super) fn leave(&mut self, id: TenantId) {
        if let Some(tenant) = self.known.get_mut(&id) {
            tenant.requests = tenant.requests.saturating_sub(1);
            if tenant.requests == 0 {
                self.left = tenant.served;
            }
        }
    }

    pub(super) fn charge(&mut self, id: TenantId, tokens: usize) {
        if let Some(tenant) = self.known.get_mut(&id) {
            tenant.served += tokens as u64;
        }
    }

    /// Tokens that were charged and not served after all.
    pub(super) fn refund(&mut self, id: TenantId, tokens: usize) {
        if let Some(tenant) = self.known.get_mut(&id) {
            tenant.served = tenant.served.saturating_sub(tokens as u64);
        }
    }

    /// Tokens served; zero for one that was never here.
    pub(super) fn served(&self, id: TenantId) -> u64 {
        self.known.get(&id).map_or(0, |tenant| tenant.served)
    }

    /// How many tenants have requests here.
    pub(super) fn count(&self) -> usize {
        self.active().count()
    }

    fn active(&self) -> impl Iterator<Item = &Tenant> {
        self.known.values().filter(|tenant| tenant.requests > 0)
    }
}
