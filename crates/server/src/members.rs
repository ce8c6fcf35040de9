//! What a member of a service pool is, for the controller: the API knows.

use async_trait::async_trait;
use tram_api::ApiState;
use tram_controller::pool::{MemberMaker, Unmakable};
use tram_store::{NewPoolMember, record::ServicePool};

/// Asks the API.
#[derive(Debug)]
pub struct Members(pub ApiState);

#[async_trait]
impl MemberMaker for Members {
    async fn member(&self, pool: &ServicePool) -> Result<NewPoolMember, Unmakable> {
        tram_api::pool_member(&self.0, pool).await.map_err(|error| {
            if error.is_ours() {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    pool = %pool.id,
                    "a member of a service pool cannot be described"
                );
            }
            Unmakable(error.message(""))
        })
    }
}
