//! Service pools: services kept ready in advance, and who took them.

use serde_json::Value;
use tram_types::{
    ClaimId, OrganizationId, ServiceId, ServicePoolId, Timestamp,
    status::{PoolClaimStatus, ServiceStatus},
};

use crate::record::{Desired, records};

records! {
    /// Keeps services of one definition ready.
    pub struct ServicePool in "service_pools" as "service pool" {
        /// Its id.
        pub id: ServicePoolId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Unique in the organization.
        pub name: String,
        /// How many services it keeps ready.
        pub size: u32,
        /// What each of them is, as it came in.
        pub definition: Value,
        /// What its owner wants: to run or to be gone.
        pub desired: Desired,
        /// Why its members cannot be had; empty when nothing is wrong.
        pub messages: Vec<String>,
        /// Counts definitions: members of an older one are replaced.
        pub generation: i64,
        /// Who made it, as its members' deployments remember.
        pub created_by: String,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }

    /// A service that somebody took from a pool.
    pub struct Claim in "claims" as "claim" {
        /// Its id.
        pub id: ClaimId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// The pool it was taken from.
        pub pool_id: ServicePoolId,
        /// What was taken.
        pub service_id: ServiceId,
        /// The caller's name for the request, unique in the pool: asking again gives the same claim.
        pub request_id: String,
        /// Fulfilled, or released once the service is gone.
        pub status: PoolClaimStatus,
        /// Whether the service was ready when it was taken.
        pub prewarmed: bool,
        /// The pool's generation at the time.
        pub pool_generation: i64,
        /// When it was asked for.
        pub created_at: Timestamp,
        /// When the service was there.
        pub fulfilled_at: Option<Timestamp>,
        /// When the service was gone.
        pub released_at: Option<Timestamp>,
    }
}

/// A service that waits in a pool, as its reconciler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMember {
    /// Which.
    pub service_id: ServiceId,
    /// The pool's generation it was made from.
    pub generation: i64,
    /// Whether it is on its way out.
    pub retired: bool,
    /// What was confirmed of the service.
    pub status: ServiceStatus,
    /// What its owner wants of the service.
    pub desired: Desired,
    /// When it was made.
    pub created_at: Timestamp,
}
