//! Has running instances go on under another deployment: a network policy that changes while they run.

use std::collections::HashMap;

use tram_site::Continuation;
use tram_types::{DeploymentId, InstanceId};

use super::{Reconciler, batch::Written, execute::Done, view::Seen};
use crate::{error::Error, spec::egress};

impl Reconciler {
    /// Tells the site of an instance that it goes on as one of this deployment.
    pub(super) async fn continue_as(
        &self,
        seen: &Seen,
        instance: InstanceId,
        deployment: DeploymentId,
        written: &HashMap<InstanceId, Written>,
    ) -> Result<Option<Done>, Error> {
        let Some((row, site)) = self.row(seen, instance) else {
            return Ok(None);
        };
        let regional = seen
            .state
            .regional_deployments
            .iter()
            .find(|it| it.deployment_id == deployment && it.region == row.region);
        let (Some(regional), Some(definition)) = (regional, seen.definitions.get(&deployment)) else {
            return Ok(None);
        };
        let continuation = Continuation {
            deployment_id: deployment,
            regional_deployment_id: regional.id,
            egress_allow: egress(definition),
        };
        site.continue_as(instance, &continuation, Written::of(row, written).generation)
            .await
            .map_err(Error::site("change the network policy of a running instance"))?;
        // The site has done it when it answers: the next look sees it.
        Ok(Some(Done::Progress))
    }
}
