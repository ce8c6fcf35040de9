//! What the edge's routing table is made of: whole for a fresh start, and by service, app and domain for changes.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use tram_types::{
    AppId, DeploymentId, DomainId, OrganizationId, ProjectId, ServiceId, Timestamp,
    status::{DeploymentStatus, ServiceStatus, ServiceType},
};

use crate::{
    Store,
    database::commit,
    error::Result,
    record::{Desired, Instance, ProxyPort},
    sql::{Sql, read},
};

/// A domain that leads to an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedDomain {
    /// Its id.
    pub id: DomainId,
    /// The host name.
    pub name: String,
    /// The app.
    pub app_id: AppId,
    /// How long a request may wait for its answer to begin, where the domain's owner chose that.
    pub request_timeout_seconds: Option<u32>,
}

/// A service as the routing table needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutedService {
    /// Its id.
    pub id: ServiceId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project, whose secrets its security policies may name.
    pub project_id: Option<ProjectId>,
    /// Its app.
    pub app_id: AppId,
    /// Its app's name.
    pub app_name: String,
    /// Its name.
    pub name: String,
    /// Web, worker, database or sandbox.
    pub kind: ServiceType,
    /// What its owner wants.
    pub desired: Desired,
    /// What was confirmed.
    pub status: ServiceStatus,
    /// When it was made: of two services that claim one path, the older one has it.
    pub created_at: Timestamp,
    /// Since when it sleeps.
    pub sleeping_since: Option<Timestamp>,
    /// The deployment that serves, or the newest one when none was healthy yet.
    pub deployment: Option<RoutedDeployment>,
    /// Newer ones that come up beside the active one or go down again, oldest first.
    pub upcoming: Vec<UpcomingDeployment>,
    /// Its instances of any deployment that are not over: the caller keeps the healthy ones of the deployment.
    pub instances: Vec<Instance>,
    /// Its public ports.
    pub proxy_ports: Vec<ProxyPort>,
}

/// The deployment that a service's routes come from.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutedDeployment {
    /// Its id.
    pub id: DeploymentId,
    /// Whether it is the active one.
    pub is_active: bool,
    /// What was confirmed.
    pub status: DeploymentStatus,
    /// Why it failed, if it did.
    pub messages: Vec<String>,
    /// As it came in: ports, routes, policies.
    pub definition: Value,
    /// A sandbox's routing key is in it.
    pub metadata: Value,
}

/// A deployment that comes up beside the one that serves, or did and goes down.
#[derive(Debug, Clone, PartialEq)]
pub struct UpcomingDeployment {
    /// Its id.
    pub id: DeploymentId,
    /// As it came in: how it takes over, and its ports.
    pub definition: Value,
}

/// Everything the routing table is made of, as of one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoutingSnapshot {
    /// Domains that lead somewhere, by name.
    pub domains: Vec<RoutedDomain>,
    /// Services, oldest first.
    pub services: Vec<RoutedService>,
}

/// What a service of an app claims of the app's paths.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedRoutes {
    /// The service's name.
    pub name: String,
    /// Web, worker, database or sandbox.
    pub kind: ServiceType,
    /// Of the newest deployment's definition, what decides it: `type`, `ports` and `routes`.
    pub definition: Value,
}

const DOING: &str = "reading the routes";

impl Store {
    /// Everything, in four statements whatever the number of services.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn routing_snapshot(&self) -> Result<RoutingSnapshot> {
        self.routing(None, true).await
    }

    /// One service; `None` when it is gone. The cost does not grow with the number of services.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn routed_service(&self, id: ServiceId) -> Result<Option<RoutedService>> {
        Ok(self.routing(Some(id), false).await?.services.pop())
    }

    /// The domains of an app that lead to it, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn routed_domains_of_app(&self, app: AppId) -> Result<Vec<RoutedDomain>> {
        routed_domains(
            Sql::default().with("WHERE app_id = ", &app),
            &mut *self.database().read(DOING).await?,
        )
        .await
    }

    /// One domain; `None` when it is gone or leads nowhere.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn routed_domain(&self, id: DomainId) -> Result<Option<RoutedDomain>> {
        let condition = Sql::default().with("WHERE app_id IS NOT NULL AND id = ", &id);
        Ok(
            routed_domains(condition, &mut *self.database().read(DOING).await?)
                .await?
                .pop(),
        )
    }

    /// What the services of an app that are not on their way out claim of its paths, but those of kind `without`. One
    /// statement, and of each definition only what decides it.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn claimed_routes(
        &self,
        organization: OrganizationId,
        app: AppId,
        without: Option<ServiceType>,
    ) -> Result<Vec<ClaimedRoutes>> {
        const DOING: &str = "reading the paths that services claim";
        let parts = if self.database().is_postgres() {
            // PostgreSQL reads no JSON that has a zero character anywhere. Written with as many letters, another one
            // leaves an escaped backslash before it whole.
            "json_build_object('type', whole -> 'type', 'ports', whole -> 'ports', 'routes', whole -> 'routes') \
             FROM (SELECT CAST(replace(definition, '\\u0000', '\\ufffd') AS JSON) AS whole) AS parsed"
        } else {
            "json_object('type', definition -> '$.type', 'ports', definition -> '$.ports', \
             'routes', definition -> '$.routes')"
        };
        let mut sql = Sql::new(format!(
            "SELECT services.name, services.kind, CAST((SELECT {parts}) AS TEXT) AS definition FROM services \
             JOIN deployments ON deployments.id = services.latest_deployment_id"
        ))
        .with(" WHERE services.organization_id = ", &organization)
        .with(" AND services.app_id = ", &app);
        sql.add(" AND services.desired <> 'DELETE'");
        sql.push_some(" AND services.kind <> ", without.as_ref());
        sql.add(" ORDER BY services.created_at, services.id");
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| {
                Ok(ClaimedRoutes {
                    name: read(row, "name", DOING)?,
                    kind: read(row, "kind", DOING)?,
                    definition: read(row, "definition", DOING)?,
                })
            })
            .collect()
    }

    async fn routing(&self, only: Option<ServiceId>, with_domains: bool) -> Result<RoutingSnapshot> {
        let mut snapshot = self.database().snapshot(DOING).await?;
        let domains = if with_domains {
            routed_domains(Sql::new("WHERE app_id IS NOT NULL"), &mut snapshot).await?
        } else {
            Vec::new()
        };
        let mut sql = Sql::new(
            "SELECT services.id, services.organization_id, services.project_id, services.app_id, \
             apps.name AS app_name, services.name, services.kind, services.desired, services.status, \
             services.created_at, services.sleeping_since, services.active_deployment_id, deployments.id AS deployment_id, \
             deployments.status AS deployment_status, deployments.messages AS deployment_messages, \
             deployments.definition, deployments.metadata FROM services \
             JOIN apps ON apps.id = services.app_id \
             LEFT JOIN deployments ON deployments.id = \
             COALESCE(services.active_deployment_id, services.latest_deployment_id)",
        );
        sql.push_some(" WHERE services.id = ", only.as_ref());
        sql.add(" ORDER BY services.created_at, services.id");
        let mut instances: HashMap<ServiceId, Vec<Instance>> = HashMap::new();
        let mut live = Sql::select::<Instance>("WHERE forgotten = 0 AND status NOT IN ('STOPPED', 'ERROR')");
        live.push_some(" AND service_id = ", only.as_ref());
        live.add(" ORDER BY created_at, id");
        for instance in live.all::<Instance>(&mut snapshot, DOING).await? {
            instances.entry(instance.service_id).or_default().push(instance);
        }
        let mut proxy_ports: HashMap<ServiceId, Vec<ProxyPort>> = HashMap::new();
        let mut given = Sql::select::<ProxyPort>("WHERE 1 = 1");
        given.push_some(" AND service_id = ", only.as_ref());
        given.add(" ORDER BY public_port");
        for port in given.all::<ProxyPort>(&mut snapshot, DOING).await? {
            proxy_ports.entry(port.service_id).or_default().push(port);
        }
        let mut upcoming = upcoming(only, &mut snapshot).await?;
        let rows = sql.rows(&mut snapshot, DOING).await?;
        commit(snapshot, DOING).await?;
        let mut services = Vec::with_capacity(rows.len());
        let mut seen = HashSet::with_capacity(rows.len());
        for row in &rows {
            let id: ServiceId = read(row, "id", DOING)?;
            if !seen.insert(id) {
                continue;
            }
            let active: Option<DeploymentId> = read(row, "active_deployment_id", DOING)?;
            let deployment = match read::<Option<DeploymentId>>(row, "deployment_id", DOING)? {
                Some(id) => Some(RoutedDeployment {
                    id,
                    is_active: active == Some(id),
                    status: read(row, "deployment_status", DOING)?,
                    messages: read(row, "deployment_messages", DOING)?,
                    definition: read(row, "definition", DOING)?,
                    metadata: read(row, "metadata", DOING)?,
                }),
                None => None,
            };
            services.push(RoutedService {
                id,
                organization_id: read(row, "organization_id", DOING)?,
                project_id: read(row, "project_id", DOING)?,
                app_id: read(row, "app_id", DOING)?,
                app_name: read(row, "app_name", DOING)?,
                name: read(row, "name", DOING)?,
                kind: read(row, "kind", DOING)?,
                desired: read(row, "desired", DOING)?,
                status: read(row, "status", DOING)?,
                created_at: read(row, "created_at", DOING)?,
                sleeping_since: read(row, "sleeping_since", DOING)?,
                deployment,
                upcoming: upcoming.remove(&id).unwrap_or_default(),
                instances: instances.remove(&id).unwrap_or_default(),
                proxy_ports: proxy_ports.remove(&id).unwrap_or_default(),
            });
        }
        Ok(RoutingSnapshot { domains, services })
    }
}

/// By service, the deployments newer than the active one that may have instances, oldest first. The words about those
/// that are not final are a partial index's.
async fn upcoming(
    only: Option<ServiceId>,
    connection: &mut sqlx::AnyConnection,
) -> Result<HashMap<ServiceId, Vec<UpcomingDeployment>>> {
    let mut sql = Sql::new(
        "SELECT upcoming.service_id, upcoming.id, upcoming.definition FROM deployments AS upcoming \
         JOIN services ON services.id = upcoming.service_id \
         JOIN deployments AS active ON active.id = services.active_deployment_id \
         WHERE upcoming.version > active.version \
         AND upcoming.status NOT IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED') \
         AND upcoming.status IN ('ALLOCATING', 'STARTING', 'CANCELING', 'STOPPING', 'ERRORING')",
    );
    sql.push_some(" AND upcoming.service_id = ", only.as_ref());
    sql.add(" ORDER BY upcoming.version");
    let mut found: HashMap<ServiceId, Vec<UpcomingDeployment>> = HashMap::new();
    for row in &sql.rows(connection, DOING).await? {
        let service: ServiceId = read(row, "service_id", DOING)?;
        found.entry(service).or_default().push(UpcomingDeployment {
            id: read(row, "id", DOING)?,
            definition: read(row, "definition", DOING)?,
        });
    }
    Ok(found)
}

/// Domains that answer: those the platform gave and custom ones that were found to lead here. A name that nobody has
/// shown to be theirs is not served.
async fn routed_domains(condition: Sql, connection: &mut sqlx::AnyConnection) -> Result<Vec<RoutedDomain>> {
    let mut sql = condition.behind("SELECT id, name, app_id, load_balancer FROM domains ");
    sql.add(
        " AND (status = 'ACTIVE' OR (kind = 'AUTOASSIGNED' AND status NOT IN ('DELETING', 'DELETED'))) \
         ORDER BY name",
    );
    let rows = sql.rows(connection, DOING).await?;
    rows.iter()
        .map(|row| {
            let balancer: Value = read(row, "load_balancer", DOING)?;
            Ok(RoutedDomain {
                id: read(row, "id", DOING)?,
                name: read(row, "name", DOING)?,
                app_id: read(row, "app_id", DOING)?,
                request_timeout_seconds: balancer
                    .pointer("/koyeb/request_timeout_seconds")
                    .and_then(Value::as_u64)
                    .filter(|seconds| *seconds > 0)
                    .map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
            })
        })
        .collect()
}
