//! Reading deployments, regional deployments and instances. The API never writes these but by an intent.

use tram_types::{DeploymentId, InstanceId, OrganizationId, RegionalDeploymentId};

use crate::{
    Store,
    error::Result,
    filter::{self, Listed, Order, Page},
    record::{Deployment, Instance, RegionalDeployment},
    sql::Sql,
};

impl Store {
    /// One deployment.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn deployment(&self, organization: OrganizationId, id: DeploymentId) -> Result<Deployment> {
        self.get(organization, id, "reading a deployment").await
    }

    /// One deployment, whosever it is: for the controller.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn deployment_unscoped(&self, id: DeploymentId) -> Result<Deployment> {
        self.get_unscoped(id, "reading a deployment").await
    }

    /// Deployments, newest first: the newest by version of one service comes first in any case.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn list_deployments(
        &self,
        organization: OrganizationId,
        filter: &filter::Deployments,
        page: Page,
    ) -> Result<Listed<Deployment>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND app_id = ", filter.app_id.as_ref());
        condition.push_some(" AND service_id = ", filter.service_id.as_ref());
        if let Some(project) = &filter.project_id {
            condition.push(
                " AND service_id IN (SELECT id FROM services WHERE project_id = ",
                project,
            );
            condition.add(")");
        }
        condition.push_any_of("status", &filter.statuses);
        condition.push_any_of("id", &filter.ids);
        let order = if filter.service_id.is_some() {
            "version DESC"
        } else {
            "created_at DESC, version DESC, id DESC"
        };
        self.list(condition, order, page, "listing deployments").await
    }

    /// One regional deployment.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn regional_deployment(
        &self,
        organization: OrganizationId,
        id: RegionalDeploymentId,
    ) -> Result<RegionalDeployment> {
        self.get(organization, id, "reading a regional deployment").await
    }

    /// Regional deployments, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn list_regional_deployments(
        &self,
        organization: OrganizationId,
        filter: &filter::RegionalDeployments,
        page: Page,
    ) -> Result<Listed<RegionalDeployment>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND deployment_id = ", filter.deployment_id.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(
            condition,
            "created_at DESC, region, id DESC",
            page,
            "listing regional deployments",
        )
        .await
    }

    /// One instance.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn instance(&self, organization: OrganizationId, id: InstanceId) -> Result<Instance> {
        self.get(organization, id, "reading an instance").await
    }

    /// One instance, whosever it is: for the controller.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn instance_unscoped(&self, id: InstanceId) -> Result<Instance> {
        self.get_unscoped(id, "reading an instance").await
    }

    /// Instances, in the order asked for.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn list_instances(
        &self,
        organization: OrganizationId,
        filter: &filter::Instances,
        page: Page,
    ) -> Result<Listed<Instance>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND app_id = ", filter.app_id.as_ref());
        condition.push_some(" AND service_id = ", filter.service_id.as_ref());
        condition.push_some(" AND deployment_id = ", filter.deployment_id.as_ref());
        condition.push_some(
            " AND regional_deployment_id = ",
            filter.regional_deployment_id.as_ref(),
        );
        condition.push_some(" AND replica_index = ", filter.replica_index.as_ref());
        condition.push_any_of("status", &filter.statuses);
        condition.push_any_of("id", &filter.ids);
        if let Some(starting) = &filter.starting_time {
            condition.push(" AND (terminated_at IS NULL OR terminated_at >= ", starting);
            condition.add(")");
        }
        condition.push_some(" AND created_at <= ", filter.ending_time.as_ref());
        let order = match filter.order {
            Order::Ascending => "created_at ASC, id ASC",
            Order::Descending => "created_at DESC, id DESC",
        };
        self.list(condition, order, page, "listing instances").await
    }
}
