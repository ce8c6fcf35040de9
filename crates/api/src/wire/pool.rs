//! Service pools and claims.

use tram_types::{
    Int64, Timestamp,
    definition::DeploymentDefinition,
    status::{PoolClaimStatus, ServicePoolStatus},
};

tram_types::message! {
    /// Keeps services of one definition ready.
    pub struct ServicePool {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub organization_id: String,
        pub workspace_id: String,
        pub name: String,
        pub size: i64,
        pub ready_count: i64,
        pub definition: Option<DeploymentDefinition>,
        pub status: ServicePoolStatus,
        pub messages: Vec<String>,
        pub generation: Int64,
        pub customer_id: String,
    }

    /// A pool to make.
    pub struct CreateServicePool {
        pub name: String,
        pub size: i64,
        pub definition: Option<DeploymentDefinition>,
    }

    /// What to change of a pool.
    pub struct UpdateServicePool {
        pub size: i64,
        pub definition: Option<DeploymentDefinition>,
    }

    /// The answer of `create service pool`.
    pub struct CreateServicePoolReply {
        pub service_pool: Option<ServicePool>,
    }

    /// The answer of `get service pool`.
    pub struct GetServicePoolReply {
        pub service_pool: Option<ServicePool>,
    }

    /// The answer of `update service pool`.
    pub struct UpdateServicePoolReply {
        pub service_pool: Option<ServicePool>,
    }

    /// The answer of `list service pools`.
    pub struct ListServicePoolsReply {
        pub service_pools: Vec<ServicePool>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }

    /// The empty answer of `delete service pool`.
    pub struct DeleteServicePoolReply {}

    /// A service that was taken from a pool.
    pub struct PoolClaim {
        pub id: String,
        pub pool_id: String,
        pub service_id: String,
        pub request_id: String,
        pub status: PoolClaimStatus,
        pub organization_id: String,
        pub workspace_id: String,
        pub customer_id: String,
        pub created_at: Option<Timestamp>,
        pub fulfilled_at: Option<Timestamp>,
        pub released_at: Option<Timestamp>,
        pub pool_generation: Int64,
    }

    /// Asks for a service of a pool.
    pub struct PoolClaimRequest {
        pub pool_id: String,
        pub request_id: String,
    }

    /// The answer of `claim`.
    pub struct PoolClaimReply {
        pub claim_id: String,
        pub service_id: String,
        pub prewarmed: bool,
    }

    /// The answer of `get claim`.
    pub struct GetPoolClaimReply {
        pub claim: Option<PoolClaim>,
    }

    /// The answer of `list claims`.
    pub struct ListPoolClaimReply {
        pub claims: Vec<PoolClaim>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }
}
