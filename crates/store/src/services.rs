//! Services and the intents about them: make, deploy, edit, pause, resume, delete, scale, cancel.

use sqlx::AnyConnection;
use tram_types::{
    AppId, DeploymentId, OrganizationId, ServiceId, Timestamp,
    status::{DeploymentStatus, RegionalDeploymentStatus, ServiceStatus},
};

use crate::{
    Change, Store,
    apps::{lock_app, run_app},
    column::Column as _,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{Deployed, NewDeployment, NewService, ServiceEdit},
    leadership::check_epoch,
    ports::{self, Wanted},
    record::{Deployment, Desired, ManualScaling, RegionalDeployment, Service},
    sql::Sql,
    store::get_in,
    volumes,
};

impl Store {
    /// Makes a service, its first deployment, one regional deployment a region, and its public ports.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name; [`Error::NotFound`] for the app or the project; [`Error::Conflict`] when
    /// the app is being deleted; [`Error::Exhausted`] for public ports.
    pub async fn create_service(&self, new: NewService) -> Result<Deployed> {
        const DOING: &str = "making a service";
        self.check_owned(new.organization_id, new.project_id, None)
            .await?;
        let wanted = self.proxy_ports_of(&new.proxy_ports);
        let mut transaction = self.database().write(DOING).await?;
        let deployed = insert_service(&mut transaction, wanted, new, self.now()).await?;
        self.finish(
            transaction,
            &[
                Change::Service(deployed.service.id),
                Change::App(deployed.service.app_id),
            ],
            DOING,
        )
        .await?;
        Ok(deployed)
    }

    /// Makes a deployment of a service with the next version and makes it the newest, together with changes of the
    /// service itself. Public ports are given to `proxy_ports` and to those its definition names.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the service is being deleted; [`Error::AlreadyExists`] for a
    /// new name; [`Error::Exhausted`] for public ports.
    pub async fn add_deployment(
        &self,
        organization: OrganizationId,
        service: ServiceId,
        edit: &ServiceEdit,
        deployment: NewDeployment,
        proxy_ports: &[u16],
    ) -> Result<Deployed> {
        const DOING: &str = "adding a deployment";
        let wanted = self.proxy_ports_of(proxy_ports);
        let mut transaction = self.database().write(DOING).await?;
        let now = self.now();
        let deployed = deploy(
            &mut transaction,
            organization,
            service,
            edit,
            deployment,
            wanted,
            now,
        )
        .await?;
        self.finish(transaction, &[Change::Service(service)], DOING)
            .await?;
        Ok(deployed)
    }

    /// Records that a paused service should run again, with a new deployment.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is not paused.
    pub async fn resume_service(
        &self,
        organization: OrganizationId,
        service: ServiceId,
        deployment: NewDeployment,
    ) -> Result<Deployed> {
        const DOING: &str = "resuming a service";
        let mut transaction = self.database().write(DOING).await?;
        let deployed = resume(
            &mut transaction,
            organization,
            service,
            deployment,
            self.proxy_ports_of(&[]),
            self.now(),
        )
        .await?;
        self.finish(
            transaction,
            &[Change::Service(service), Change::App(deployed.service.app_id)],
            DOING,
        )
        .await?;
        Ok(deployed)
    }

    /// Tells the controller, wherever it runs, that somebody wants a sleeping service awake. Nothing is written down: it
    /// holds for now, as a request does, and a controller that is away does not hear of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn wake_service(&self, service: ServiceId) -> Result<()> {
        const DOING: &str = "asking for a service to wake";
        let transaction = self.database().write(DOING).await?;
        self.finish(transaction, &[Change::Wake(service)], DOING).await
    }

    /// Changes a service without deploying it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_service(
        &self,
        organization: OrganizationId,
        id: ServiceId,
        edit: &ServiceEdit,
    ) -> Result<Service> {
        let mut sql = Sql::update::<Service>(edit.cells(), self.now());
        sql.add(", version = version + 1");
        let sql = sql
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        match self
            .write_one(sql, &[Change::Service(id)], "changing a service")
            .await?
        {
            0 => Err(Error::not_found("service", id)),
            _ => self.service(organization, id).await,
        }
    }

    /// Records that a service should pause or go, with the transitional status. Asking twice is fine.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is being deleted and should pause, or for `Run` (see
    /// [`Store::resume_service`]).
    pub async fn set_service_desired(
        &self,
        organization: OrganizationId,
        id: ServiceId,
        desired: Desired,
    ) -> Result<Service> {
        const DOING: &str = "recording what should become of a service";
        let now = self.now();
        let status = match desired {
            Desired::Pause => ServiceStatus::Pausing,
            Desired::Delete => ServiceStatus::Deleting,
            Desired::Run => {
                return Err(Error::conflict("service", id, "resuming needs a deployment"));
            }
        };
        let mut transaction = self.database().write(DOING).await?;
        let service = lock_service(&mut transaction, organization, id, now, DOING).await?;
        if service.desired == Desired::Delete && desired != Desired::Delete {
            return Err(Error::conflict("service", id, "it is being deleted"));
        }
        if service.desired != desired {
            let cells = vec![("desired", desired.to_cell()), ("status", status.to_cell())];
            let mut sql = Sql::update::<Service>(cells, now);
            sql.add(", version = version + 1");
            sql.with(" WHERE id = ", &id).run(&mut transaction, DOING).await?;
        }
        let service = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &[Change::Service(id)], DOING).await?;
        Ok(service)
    }

    /// Records that a service should go because its own rules say so: for the controller, which saw this version of
    /// its owner's intent.
    ///
    /// # Errors
    /// [`Error::Conflict`] when its owner wants something else by now, when it is gone, or when another process took
    /// the leadership: read again.
    pub async fn expire_service(&self, id: ServiceId, version: i64) -> Result<()> {
        const DOING: &str = "recording that a service has had its time";
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let cells = vec![
            ("desired", Desired::Delete.to_cell()),
            ("status", ServiceStatus::Deleting.to_cell()),
        ];
        let mut sql = Sql::update::<Service>(cells, self.now());
        sql.add(", version = version + 1");
        let sql = sql.with(" WHERE id = ", &id).with(" AND version = ", &version);
        if sql.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::conflict("service", id, "its intent changed meanwhile"));
        }
        self.finish(transaction, &[Change::Service(id)], DOING).await
    }

    /// Records the owner's override of the definition's scaling; an empty one ends it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is being deleted.
    pub async fn set_manual_scaling(
        &self,
        organization: OrganizationId,
        id: ServiceId,
        scaling: Vec<ManualScaling>,
    ) -> Result<Service> {
        const DOING: &str = "recording a manual scaling";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let service = lock_service(&mut transaction, organization, id, now, DOING).await?;
        if service.desired == Desired::Delete {
            return Err(Error::conflict("service", id, "it is being deleted"));
        }
        let mut sql = Sql::update::<Service>(vec![("manual_scaling", scaling.to_cell())], now);
        sql.add(", version = version + 1");
        sql.with(" WHERE id = ", &id).run(&mut transaction, DOING).await?;
        let service = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &[Change::Service(id)], DOING).await?;
        Ok(service)
    }

    /// Records that a deployment should be cancelled.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it has gone too far.
    pub async fn request_cancel(&self, organization: OrganizationId, id: DeploymentId) -> Result<Deployment> {
        const DOING: &str = "recording a cancellation";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let deployment: Deployment = get_in(&mut transaction, organization, id, DOING).await?;
        let service = deployment.service_id;
        lock_service(&mut transaction, organization, service, now, DOING).await?;
        let changed = Sql::update::<Deployment>(vec![("cancel_requested", true.to_cell())], now)
            .with(" WHERE id = ", &id)
            .with(" AND status IN (", &"PENDING".to_owned())
            .with(", ", &"PROVISIONING".to_owned())
            .with(", ", &"SCHEDULED".to_owned());
        let mut changed = changed;
        changed.add(")");
        if changed.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::conflict(
                "deployment",
                id,
                format!(
                    "it is {}, and only a PENDING, PROVISIONING or SCHEDULED one can be cancelled",
                    deployment.status
                ),
            ));
        }
        bump(&mut transaction, service, DOING).await?;
        let deployment = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &[Change::Service(service)], DOING)
            .await?;
        Ok(deployment)
    }

    /// One service.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn service(&self, organization: OrganizationId, id: ServiceId) -> Result<Service> {
        self.get(organization, id, "reading a service").await
    }

    /// One service, whosever it is: for the controller and the edge.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn service_unscoped(&self, id: ServiceId) -> Result<Service> {
        self.get_unscoped(id, "reading a service").await
    }

    /// The service of an app with this name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn service_by_name(
        &self,
        organization: OrganizationId,
        app: AppId,
        name: &str,
    ) -> Result<Option<Service>> {
        let sql = Sql::select::<Service>("WHERE organization_id = $1 AND app_id = $2 AND name = $3")
            .bind(&organization)
            .bind(&app)
            .bind(&name.to_owned());
        self.find(sql, "looking up a service by name").await
    }

    /// Services, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_services(
        &self,
        organization: OrganizationId,
        filter: &filter::Services,
        page: Page,
    ) -> Result<Listed<Service>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND app_id = ", filter.app_id.as_ref());
        condition.push_some(" AND project_id = ", filter.project_id.as_ref());
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_any_of("kind", &filter.kinds);
        condition.push_any_of("status", &filter.statuses);
        condition.push_any_of("id", &filter.ids);
        if !filter.regions.is_empty() {
            condition.add(
                " AND EXISTS (SELECT 1 FROM regional_deployments \
                 WHERE regional_deployments.deployment_id = services.latest_deployment_id",
            );
            condition.push_any_of("regional_deployments.region", &filter.regions);
            condition.add(")");
        }
        self.list(condition, "created_at DESC, id DESC", page, "listing services")
            .await
    }
}

/// Reads a service and keeps others from changing its intent until the transaction ends.
pub(crate) async fn lock_service(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    id: ServiceId,
    now: Timestamp,
    doing: &'static str,
) -> Result<Service> {
    let touched = Sql::new("UPDATE services SET updated_at = $1 WHERE id = $2 AND organization_id = $3")
        .bind(&now)
        .bind(&id)
        .bind(&organization)
        .run(connection, doing)
        .await?;
    if touched == 0 {
        return Err(Error::not_found("service", id));
    }
    get_in(connection, organization, id, doing).await
}

async fn bump(connection: &mut AnyConnection, id: ServiceId, doing: &'static str) -> Result<()> {
    Sql::new("UPDATE services SET version = version + 1 WHERE id = $1")
        .bind(&id)
        .run(connection, doing)
        .await
        .map(drop)
}

/// Makes a service with its first deployment.
pub(crate) async fn insert_service(
    connection: &mut AnyConnection,
    wanted: Wanted,
    new: NewService,
    now: Timestamp,
) -> Result<Deployed> {
    const DOING: &str = "making a service";
    let wanted = wanted.and_of(&new.deployment.definition);
    let app = lock_app(connection, new.organization_id, new.app_id, now, DOING).await?;
    if app.desired == Desired::Delete {
        return Err(Error::conflict("app", app.id, "it is being deleted"));
    }
    run_app(connection, &app, now, DOING).await?;
    let service = Service {
        id: new.id,
        organization_id: new.organization_id,
        project_id: new.project_id,
        app_id: new.app_id,
        name: new.name,
        kind: new.kind,
        desired: Desired::Run,
        status: ServiceStatus::Starting,
        messages: Vec::new(),
        version: 1,
        active_deployment_id: None,
        latest_deployment_id: Some(new.deployment.id),
        last_provisioned_deployment_id: None,
        delete_after_create_seconds: new.delete_after_create_seconds,
        delete_after_sleep_seconds: new.delete_after_sleep_seconds,
        manual_scaling: Vec::new(),
        sleeping_since: None,
        controller_memory: serde_json::Value::Null,
        created_at: now,
        updated_at: now,
        started_at: None,
        succeeded_at: None,
        paused_at: None,
        resumed_at: None,
        terminated_at: None,
    };
    Sql::insert(&service).run(connection, DOING).await?;
    let (deployment, regional) =
        insert_deployment(connection, &service, 1, None, new.deployment, now).await?;
    let proxy_ports = ports::ensure(connection, service.organization_id, service.id, &wanted, now).await?;
    Ok(Deployed {
        service,
        deployment,
        regional,
        proxy_ports,
    })
}

/// Adds a deployment to a service and makes it the newest.
pub(crate) async fn deploy(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    id: ServiceId,
    edit: &ServiceEdit,
    new: NewDeployment,
    wanted: Wanted,
    now: Timestamp,
) -> Result<Deployed> {
    const DOING: &str = "adding a deployment";
    let wanted = wanted.and_of(&new.definition);
    let service = lock_service(connection, organization, id, now, DOING).await?;
    if service.desired == Desired::Delete {
        return Err(Error::conflict("service", id, "it is being deleted"));
    }
    let newest = Sql::select::<Deployment>("WHERE service_id = $1 ORDER BY version DESC LIMIT 1")
        .bind(&id)
        .optional::<Deployment>(connection, DOING)
        .await?;
    let version = newest.as_ref().map_or(0, |newest| newest.version) + 1;
    // Lists are ordered by time; a clock that jumped back must not hide the newest deployment.
    let created_at = newest.as_ref().map_or(now, |newest| {
        now.max(Timestamp::from_micros(newest.created_at.as_micros() + 1))
    });
    let parent = newest.map(|newest| newest.id);
    let (deployment, regional) =
        insert_deployment(connection, &service, version, parent, new, created_at).await?;
    if let Some(parent) = parent {
        Sql::new("UPDATE deployments SET child_id = $1 WHERE id = $2")
            .bind(&deployment.id)
            .bind(&parent)
            .run(connection, DOING)
            .await?;
    }
    let mut cells = edit.cells();
    cells.push(("latest_deployment_id", deployment.id.to_cell()));
    let mut sql = Sql::update::<Service>(cells, now);
    sql.add(", version = version + 1");
    sql.with(" WHERE id = ", &id).run(connection, DOING).await?;
    let proxy_ports = ports::ensure(connection, organization, id, &wanted, now).await?;
    Ok(Deployed {
        service: get_in(connection, organization, id, DOING).await?,
        deployment,
        regional,
        proxy_ports,
    })
}

/// Makes a paused service run again with a new deployment.
pub(crate) async fn resume(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    id: ServiceId,
    new: NewDeployment,
    wanted: Wanted,
    now: Timestamp,
) -> Result<Deployed> {
    const DOING: &str = "resuming a service";
    // The app first, as everywhere, so that two transactions never wait for each other.
    let app = get_in::<Service, _>(connection, organization, id, DOING)
        .await?
        .app_id;
    let app = lock_app(connection, organization, app, now, DOING).await?;
    let service = lock_service(connection, organization, id, now, DOING).await?;
    if service.desired != Desired::Pause || service.status != ServiceStatus::Paused {
        return Err(Error::conflict(
            "service",
            id,
            format!("it is {}, and only a PAUSED one can be resumed", service.status),
        ));
    }
    run_app(connection, &app, now, DOING).await?;
    let cells = vec![
        ("desired", Desired::Run.to_cell()),
        ("status", ServiceStatus::Resuming.to_cell()),
        ("resumed_at", now.to_cell()),
    ];
    Sql::update::<Service>(cells, now)
        .with(" WHERE id = ", &id)
        .run(connection, DOING)
        .await?;
    deploy(
        connection,
        organization,
        id,
        &ServiceEdit::default(),
        new,
        wanted,
        now,
    )
    .await
}

async fn insert_deployment(
    connection: &mut AnyConnection,
    service: &Service,
    version: i64,
    parent: Option<DeploymentId>,
    new: NewDeployment,
    now: Timestamp,
) -> Result<(Deployment, Vec<RegionalDeployment>)> {
    const DOING: &str = "adding a deployment";
    let deployment = Deployment {
        id: new.id,
        organization_id: service.organization_id,
        project_id: service.project_id,
        app_id: service.app_id,
        service_id: service.id,
        version,
        status: new.status,
        messages: Vec::new(),
        definition: new.definition,
        metadata: new.metadata,
        provisioning_info: serde_json::Value::Null,
        skip_build: new.skip_build,
        cancel_requested: false,
        parent_id: parent,
        child_id: None,
        deployment_group: new.deployment_group,
        instance_snapshot_id: new.instance_snapshot_id,
        created_by: new.created_by,
        created_at: now,
        updated_at: now,
        allocated_at: None,
        started_at: None,
        succeeded_at: None,
        terminated_at: None,
    };
    Sql::insert(&deployment).run(connection, DOING).await?;
    if deployment.status != DeploymentStatus::Stashed {
        volumes::claim(connection, service, &deployment.definition, now, DOING).await?;
    }
    let mut regional = Vec::with_capacity(new.regional.len());
    for one in new.regional {
        let record = RegionalDeployment {
            id: one.id,
            organization_id: service.organization_id,
            project_id: service.project_id,
            app_id: service.app_id,
            service_id: service.id,
            deployment_id: deployment.id,
            region: one.region,
            version,
            status: RegionalDeploymentStatus::Pending,
            messages: Vec::new(),
            definition: one.definition,
            created_at: now,
            updated_at: now,
            scheduled_at: None,
            allocated_at: None,
            started_at: None,
            succeeded_at: None,
            terminated_at: None,
        };
        Sql::insert(&record).run(connection, DOING).await?;
        regional.push(record);
    }
    Ok((deployment, regional))
}
