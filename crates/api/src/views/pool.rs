//! Service pools and claims as clients see them.

use tram_store::record::{self, Desired};
use tram_types::{Int64, status::ServicePoolStatus};

use super::part;
use crate::wire::pool::{PoolClaim, ServicePool};

/// A pool of which `ready` services may be taken now.
pub(crate) fn pool(pool: &record::ServicePool, ready: u32) -> ServicePool {
    ServicePool {
        id: pool.id.to_string(),
        created_at: Some(pool.created_at),
        updated_at: Some(pool.updated_at),
        organization_id: pool.organization_id.to_string(),
        workspace_id: String::new(),
        name: pool.name.clone(),
        size: i64::from(pool.size),
        ready_count: i64::from(ready.min(pool.size)),
        definition: Some(part(&pool.definition)),
        status: status(pool, ready),
        messages: pool.messages.clone(),
        generation: Int64(pool.generation),
        customer_id: String::new(),
    }
}

fn status(pool: &record::ServicePool, ready: u32) -> ServicePoolStatus {
    if pool.desired == Desired::Delete {
        ServicePoolStatus::Deleting
    } else if ready >= pool.size {
        ServicePoolStatus::Ready
    } else if pool.messages.is_empty() {
        ServicePoolStatus::Provisioning
    } else {
        ServicePoolStatus::Error
    }
}

pub(crate) fn claim(claim: &record::Claim) -> PoolClaim {
    PoolClaim {
        id: claim.id.to_string(),
        pool_id: claim.pool_id.to_string(),
        service_id: claim.service_id.to_string(),
        request_id: claim.request_id.clone(),
        status: claim.status,
        organization_id: claim.organization_id.to_string(),
        workspace_id: String::new(),
        customer_id: String::new(),
        created_at: Some(claim.created_at),
        fulfilled_at: claim.fulfilled_at,
        released_at: claim.released_at,
        pool_generation: Int64(claim.pool_generation),
    }
}
