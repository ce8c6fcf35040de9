//! The controller's side: one service read whole, one batch applied whole, rows removed when all is confirmed gone.
//!
//! The cost of every method here depends on one service and never on how many there are, but for the instances of models,
//! which are counted together.

use sqlx::AnyConnection;
use tram_types::{
    AppId, DeploymentId, DomainId, InstanceId, ServiceId, Timestamp,
    status::{DeploymentStatus, InstanceStatus},
};

use crate::{
    Change, Store,
    column::{Cell, Column as _},
    database::commit,
    error::{Error, Result},
    history::insert_events,
    intent::{AppSet, NewEvent, Update},
    leadership::check_epoch,
    ports,
    record::{App, Deployment, Desired, Instance, ProxyPort, Record, RegionalDeployment, Service},
    sql::{Sql, read},
};

/// Everything the planner needs to know of one service, as of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceState {
    /// The service.
    pub service: Service,
    /// Its app.
    pub app: App,
    /// Its deployments that are not final, and the active, the latest, the last provisioned and the newest that is not
    /// stashed in any case; oldest first.
    pub deployments: Vec<Deployment>,
    /// The regional deployments of these.
    pub regional_deployments: Vec<RegionalDeployment>,
    /// Its instances that were not forgotten, whatever their deployment; oldest first.
    pub instances: Vec<Instance>,
    /// Its public ports.
    pub proxy_ports: Vec<ProxyPort>,
}

/// What removing a service left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovedService {
    /// Its app.
    pub app_id: AppId,
    /// Whether the app wants to go with its last service, and this was the last: it is DELETING now, and
    /// [`Store::remove_app`] ends that.
    pub app_emptied: bool,
}

/// An instance that its site may still have: what the controller compares with what a site reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownInstance {
    /// The instance.
    pub id: InstanceId,
    /// Its service.
    pub service_id: ServiceId,
}

/// Instances of one deployment whose source is a model, with one status, in one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInstances {
    /// Their service.
    pub service_id: ServiceId,
    /// Their deployment.
    pub deployment_id: DeploymentId,
    /// What they are shown as; never a final one.
    pub status: InstanceStatus,
    /// How many.
    pub count: u64,
}

impl Store {
    /// One service and all that belongs to it and may still change, in one consistent snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the service is gone.
    pub async fn load_service_state(&self, id: ServiceId) -> Result<ServiceState> {
        const DOING: &str = "reading the state of a service";
        let mut snapshot = self.database().snapshot(DOING).await?;
        let service: Service = Sql::select::<Service>("WHERE id = $1")
            .bind(&id)
            .optional(&mut snapshot, DOING)
            .await?
            .ok_or_else(|| Error::not_found("service", id))?;
        let app: App = Sql::select::<App>("WHERE id = $1")
            .bind(&service.app_id)
            .optional(&mut snapshot, DOING)
            .await?
            .ok_or_else(|| Error::not_found("app", service.app_id))?;
        let named: Vec<_> = [
            service.active_deployment_id,
            service.latest_deployment_id,
            service.last_provisioned_deployment_id,
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut deployments: Vec<Deployment> = live_deployments(id).all(&mut snapshot, DOING).await?;
        let missing: Vec<_> = named
            .into_iter()
            .filter(|named| deployments.iter().all(|deployment| deployment.id != *named))
            .collect();
        if !missing.is_empty() {
            let mut sql = Sql::select::<Deployment>("").with("WHERE service_id = ", &id);
            sql.push_any_of("id", &missing);
            deployments.extend(sql.all::<Deployment>(&mut snapshot, DOING).await?);
        }
        let newest = deployments.iter().max_by_key(|deployment| deployment.version);
        if newest.is_some_and(|newest| newest.status == DeploymentStatus::Stashed) {
            // It was stored and not deployed: what the service is shown as comes from the one before.
            let deployed = Sql::select::<Deployment>("")
                .with("WHERE service_id = ", &id)
                .with_text(" AND status <> 'STASHED' ORDER BY version DESC LIMIT 1")
                .optional::<Deployment>(&mut snapshot, DOING)
                .await?;
            deployments.extend(deployed.filter(|it| deployments.iter().all(|known| known.id != it.id)));
        }
        deployments.sort_by_key(|deployment| deployment.version);
        let ids: Vec<_> = deployments.iter().map(|deployment| deployment.id).collect();
        let regional_deployments = if ids.is_empty() {
            Vec::new()
        } else {
            let mut sql = Sql::select::<RegionalDeployment>("").with("WHERE service_id = ", &id);
            sql.push_any_of("deployment_id", &ids);
            sql.add(" ORDER BY version, region");
            sql.all(&mut snapshot, DOING).await?
        };
        let instances = live_instances(id).all(&mut snapshot, DOING).await?;
        let proxy_ports = ports::of_service(&mut snapshot, id, DOING).await?;
        commit(snapshot, DOING).await?;
        Ok(ServiceState {
            service,
            app,
            deployments,
            regional_deployments,
            instances,
            proxy_ports,
        })
    }

    /// Applies changes to one service and what belongs to it, all or none, in the order given.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the service is gone; [`Error::Conflict`] when a row has another status than the one
    /// the update expects, when the intent changed ([`Update::ExpectVersion`]), or when another process took the
    /// leadership: read again and plan anew.
    pub async fn apply(&self, service: ServiceId, updates: Vec<Update>) -> Result<()> {
        const DOING: &str = "applying what was confirmed of a service";
        if updates.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        // An update that changes nothing takes the row, as intents do first: the version stays what it is until the
        // commit, and two writers of one service never wait for each other.
        let taken = Sql::new("UPDATE services SET version = version WHERE id = $1")
            .bind(&service)
            .run(&mut transaction, DOING)
            .await?;
        if taken == 0 {
            return Err(Error::not_found("service", service));
        }
        let mut events: Vec<NewEvent> = Vec::new();
        for update in updates {
            apply_one(&mut transaction, service, update, now, &mut events).await?;
        }
        insert_events(&mut transaction, events, now, DOING).await?;
        self.commit(transaction, DOING).await
    }

    /// Records what was confirmed of an app, if it still has the status that was seen.
    ///
    /// # Errors
    /// [`Error::Conflict`]: read again.
    pub async fn apply_app(
        &self,
        id: AppId,
        expected: tram_types::status::AppStatus,
        set: AppSet,
        events: Vec<NewEvent>,
    ) -> Result<()> {
        const DOING: &str = "applying what was confirmed of an app";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let sql = Sql::update::<App>(set.cells(), now)
            .with(" WHERE id = ", &id)
            .with(" AND status = ", &expected);
        expect_one(
            sql.run(&mut transaction, DOING).await?,
            "app",
            id,
            expected.as_str(),
        )?;
        insert_events(&mut transaction, events, now, DOING).await?;
        self.commit(transaction, DOING).await
    }

    /// Ids of services that a sweep should look at, in order, after one of them: those on their way somewhere, those
    /// with a deployment or an instance that is not over, and those that are deleted some time after their creation or
    /// while they sleep. One that sleeps deeply and that nobody wants anything else of is at rest.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn services_needing_attention(
        &self,
        after: Option<ServiceId>,
        limit: u32,
    ) -> Result<Vec<ServiceId>> {
        const DOING: &str = "looking for services that need attention";
        let mut sql = Sql::new("SELECT id AS value FROM services WHERE 1 = 1");
        sql.push_some(" AND id > ", after.as_ref());
        sql.add(
            " AND (desired = 'DELETE' OR delete_after_create_seconds > 0 OR delete_after_sleep_seconds > 0 \
             OR status NOT IN ('HEALTHY', 'PAUSED', 'UNHEALTHY') \
             OR EXISTS (SELECT 1 FROM deployments WHERE deployments.service_id = services.id \
             AND deployments.status NOT IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED') \
             AND (deployments.status <> 'SLEEPING' OR services.sleeping_since IS NULL OR services.desired <> 'RUN' \
             OR EXISTS (SELECT 1 FROM apps WHERE apps.id = services.app_id AND apps.desired <> 'RUN'))) \
             OR EXISTS (SELECT 1 FROM instances WHERE instances.service_id = services.id \
             AND instances.forgotten = 0))",
        );
        sql.push(" ORDER BY id LIMIT ", &limit);
        sql.values(&mut *self.database().read(DOING).await?, DOING).await
    }

    /// The services of an app with what its status is made of: desired and status.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn services_of_app_unscoped(&self, app: AppId) -> Result<Vec<Service>> {
        const DOING: &str = "reading the services of an app";
        Sql::select::<Service>("")
            .with("WHERE app_id = ", &app)
            .with_text(" ORDER BY created_at, id")
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// The newest ended instances of a deployment, so many of each replica, newest first: what the pauses between tries
    /// are read off.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn ended_instances_unscoped(
        &self,
        deployment: DeploymentId,
        per_replica: u32,
    ) -> Result<Vec<Instance>> {
        const DOING: &str = "reading the ended instances of a deployment";
        let sql = Sql::new(format!(
            "SELECT {} FROM (SELECT instances.*, ROW_NUMBER() OVER (PARTITION BY regional_deployment_id, \
             replica_index ORDER BY created_at DESC, id DESC) AS place FROM instances \
             WHERE deployment_id = $1 AND status IN ('STOPPED', 'ERROR')) AS instances \
             WHERE place <= $2 ORDER BY created_at DESC, id DESC",
            Instance::select_list()
        ))
        .bind(&deployment)
        .bind(&per_replica);
        sql.all(&mut *self.database().read(DOING).await?, DOING).await
    }

    /// Every instance that was not forgotten, in order, after one of them: to tell a site's instances from strays.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn known_instances_unscoped(
        &self,
        after: Option<InstanceId>,
        limit: u32,
    ) -> Result<Vec<KnownInstance>> {
        const DOING: &str = "reading the known instances";
        let mut sql = Sql::new("SELECT id, service_id FROM instances WHERE forgotten = 0");
        sql.push_some(" AND id > ", after.as_ref());
        sql.push(" ORDER BY id LIMIT ", &limit);
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| {
                Ok(KnownInstance {
                    id: read(row, "id", DOING)?,
                    service_id: read(row, "service_id", DOING)?,
                })
            })
            .collect()
    }

    /// The instances in a region that are not over and whose deployment's source is a model, counted: what the models of
    /// a machine hold.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn model_instances_unscoped(&self, region: &str) -> Result<Vec<ModelInstances>> {
        const DOING: &str = "counting the instances of models";
        // Definitions are kept as JSON without blanks, in which a quote within a string never stands alone: where this
        // stands, a member `model` begins. Whoever reads the definition knows whose member it is.
        let sql = Sql::new(
            "SELECT service_id, deployment_id, status, COUNT(*) AS count FROM instances \
             WHERE forgotten = 0 AND status NOT IN ('STOPPED', 'ERROR') AND EXISTS (SELECT 1 FROM deployments \
             WHERE deployments.id = instances.deployment_id AND deployments.definition LIKE '%\"model\":{%')",
        )
        .with(" AND region = ", &region.to_owned())
        .with_text(" GROUP BY service_id, deployment_id, status ORDER BY service_id, deployment_id, status");
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| {
                Ok(ModelInstances {
                    service_id: read(row, "service_id", DOING)?,
                    deployment_id: read(row, "deployment_id", DOING)?,
                    status: read(row, "status", DOING)?,
                    count: read(row, "count", DOING)?,
                })
            })
            .collect()
    }

    /// Removes a service that should be deleted and has no instance left that was not forgotten. Its events stay
    /// until they are pruned. An app that wants to go with its last service is recorded as one that should go.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it should not be deleted or an instance is left.
    pub async fn remove_service(&self, id: ServiceId) -> Result<RemovedService> {
        const DOING: &str = "removing a service";
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let service: Service = Sql::select::<Service>("WHERE id = $1")
            .bind(&id)
            .optional(&mut transaction, DOING)
            .await?
            .ok_or_else(|| Error::not_found("service", id))?;
        // The app first, as everywhere, so that two transactions never wait for each other.
        Sql::new("UPDATE apps SET version = version WHERE id = $1")
            .bind(&service.app_id)
            .run(&mut transaction, DOING)
            .await?;
        if service.desired != Desired::Delete {
            return Err(Error::conflict("service", id, "nobody asked to delete it"));
        }
        let left =
            Sql::new("SELECT COUNT(*) AS value FROM instances WHERE service_id = $1 AND forgotten = 0")
                .bind(&id)
                .value::<u64>(&mut transaction, DOING)
                .await?;
        if left != Some(0) {
            return Err(Error::conflict("service", id, "it still has instances"));
        }
        for table in [
            "instances",
            "regional_deployments",
            "deployments",
            "proxy_ports",
            "call_patterns",
            "pool_members",
        ] {
            Sql::new(format!("DELETE FROM {table} WHERE service_id = $1"))
                .bind(&id)
                .run(&mut transaction, DOING)
                .await?;
        }
        Sql::new("UPDATE volumes SET service_id = NULL WHERE service_id = $1")
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        Sql::new("UPDATE claims SET status = 'RELEASED', released_at = $1 WHERE service_id = $2")
            .bind(&self.now())
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        Sql::new("DELETE FROM services WHERE id = $1")
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        // In this very transaction, so that no crash in between leaves the app behind.
        let emptied = Sql::new(
            "UPDATE apps SET desired = 'DELETE', status = 'DELETING', version = version + 1, updated_at = $1 \
             WHERE id = $2 AND delete_when_empty = 1 \
             AND NOT EXISTS (SELECT 1 FROM services WHERE services.app_id = apps.id)",
        )
        .bind(&self.now())
        .bind(&service.app_id)
        .run(&mut transaction, DOING)
        .await?;
        self.finish(
            transaction,
            &[Change::Service(id), Change::App(service.app_id)],
            DOING,
        )
        .await?;
        Ok(RemovedService {
            app_id: service.app_id,
            app_emptied: emptied == 1,
        })
    }

    /// Removes an app without services that should be deleted, or that goes with its last service. Its
    /// auto-assigned domains go too; its custom ones stay and lead nowhere.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it should not go or still has services.
    pub async fn remove_app(&self, id: AppId) -> Result<()> {
        const DOING: &str = "removing an app";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        // Taking the row keeps a service from being made in the app meanwhile.
        Sql::new("UPDATE apps SET version = version WHERE id = $1")
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        let app: App = Sql::select::<App>("WHERE id = $1")
            .bind(&id)
            .optional(&mut transaction, DOING)
            .await?
            .ok_or_else(|| Error::not_found("app", id))?;
        if app.desired != Desired::Delete && !app.delete_when_empty {
            return Err(Error::conflict("app", id, "nobody asked to delete it"));
        }
        let services = Sql::new("SELECT COUNT(*) AS value FROM services WHERE app_id = $1")
            .bind(&id)
            .value::<u64>(&mut transaction, DOING)
            .await?;
        if services != Some(0) {
            return Err(Error::conflict("app", id, "it still has services"));
        }
        let mut domains =
            Sql::new("DELETE FROM domains WHERE app_id = $1 AND kind = 'AUTOASSIGNED' RETURNING id AS value")
                .bind(&id)
                .values::<DomainId>(&mut transaction, DOING)
                .await?;
        domains.extend(
            Sql::new(
                "UPDATE domains SET app_id = NULL, updated_at = $1, version = version + 1 WHERE app_id = $2 \
                 RETURNING id AS value",
            )
            .bind(&now)
            .bind(&id)
            .values::<DomainId>(&mut transaction, DOING)
            .await?,
        );
        Sql::new("DELETE FROM apps WHERE id = $1")
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        let mut changes = vec![Change::App(id)];
        changes.extend(domains.into_iter().map(Change::Domain));
        self.finish(transaction, &changes, DOING).await?;
        Ok(())
    }
}

/// The deployments of a service that are not final, oldest first. The words are those of a partial index, so that
/// the many that ended cost nothing.
pub(crate) fn live_deployments(service: ServiceId) -> Sql {
    Sql::select::<Deployment>("")
        .with("WHERE service_id = ", &service)
        .with_text(" AND status NOT IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED') ORDER BY version")
}

/// The instances of a service that were not forgotten, oldest first; the same holds.
pub(crate) fn live_instances(service: ServiceId) -> Sql {
    Sql::select::<Instance>("")
        .with("WHERE service_id = ", &service)
        .with_text(" AND forgotten = 0 ORDER BY created_at, id")
}

async fn apply_one(
    connection: &mut AnyConnection,
    service: ServiceId,
    update: Update,
    now: Timestamp,
    events: &mut Vec<NewEvent>,
) -> Result<()> {
    const DOING: &str = "applying what was confirmed of a service";
    match update {
        Update::ExpectVersion(version) => {
            // An update that changes nothing takes the row, so the version stays what it is until the commit.
            let sql = Sql::new("UPDATE services SET version = version WHERE id = $1 AND version = $2")
                .bind(&service)
                .bind(&version);
            match sql.run(connection, DOING).await? {
                0 => Err(Error::conflict(
                    "service",
                    service,
                    "its intent changed meanwhile",
                )),
                _ => Ok(()),
            }
        }
        Update::Service { expected, set } => {
            let sql = Sql::update::<Service>(set.cells(), now)
                .with(" WHERE id = ", &service)
                .with(" AND status = ", &expected);
            expect_one(
                sql.run(connection, DOING).await?,
                "service",
                service,
                expected.as_str(),
            )
        }
        Update::Deployment { id, expected, set } => {
            let rows = set_row::<Deployment>(
                connection,
                service,
                set.cells(),
                id.to_cell(),
                expected.to_cell(),
                now,
            )
            .await?;
            expect_one(rows, "deployment", id, expected.as_str())
        }
        Update::RegionalDeployment { id, expected, set } => {
            let rows = set_row::<RegionalDeployment>(
                connection,
                service,
                set.cells(),
                id.to_cell(),
                expected.to_cell(),
                now,
            )
            .await?;
            expect_one(rows, "regional deployment", id, expected.as_str())
        }
        Update::Instance { id, expected, set } => {
            let rows = set_row::<Instance>(
                connection,
                service,
                set.cells(),
                id.to_cell(),
                expected.to_cell(),
                now,
            )
            .await?;
            expect_one(rows, "instance", id, expected.as_str())
        }
        Update::InsertInstance(instance) => {
            if instance.service_id != service {
                return Err(Error::conflict(
                    "instance",
                    instance.id,
                    "it belongs to another service",
                ));
            }
            Sql::insert(&*instance).run(connection, DOING).await.map(drop)
        }
        Update::Event(event) => {
            events.push(*event);
            Ok(())
        }
    }
}

async fn set_row<R: Record>(
    connection: &mut AnyConnection,
    service: ServiceId,
    cells: Vec<(&'static str, Cell)>,
    id: Cell,
    expected: Cell,
    now: Timestamp,
) -> Result<u64> {
    Sql::update::<R>(cells, now)
        .with_cell(" WHERE id = ", id)
        .with_cell(" AND status = ", expected)
        .with(" AND service_id = ", &service)
        .run(connection, "applying what was confirmed of a service")
        .await
}

fn expect_one(rows: u64, object: &'static str, id: impl std::fmt::Display, expected: &str) -> Result<()> {
    if rows == 0 {
        return Err(Error::conflict(
            object,
            id,
            format!("it is not {expected} any more"),
        ));
    }
    Ok(())
}
