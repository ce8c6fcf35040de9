//! Apps: made with their domain, paused, resumed and deleted with their services.

use sqlx::AnyConnection;
use tram_types::{
    AppId, OrganizationId, ServiceId, Timestamp,
    status::{AppStatus, ServiceStatus},
};

use crate::{
    Change, Store,
    column::Column as _,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{AppEdit, ComposeApp, ComposeService, Composed, Deployed, NewApp, NewDeployment, NewDomain},
    record::{App, Desired, Domain},
    services::{deploy, insert_service, lock_service, resume},
    sql::Sql,
    store::get_in,
};

impl Store {
    /// Makes an app.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name.
    pub async fn create_app(&self, new: NewApp) -> Result<App> {
        let app = app_of(new, self.now());
        self.write_one(Sql::insert(&app), &[Change::App(app.id)], "making an app")
            .await?;
        Ok(app)
    }

    /// Makes an app and its domain, or neither.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name of either.
    pub async fn create_app_with_domain(&self, new: NewApp, domain: NewDomain) -> Result<(App, Domain)> {
        const DOING: &str = "making an app";
        let now = self.now();
        let app = app_of(new, now);
        let domain = crate::domains::domain_of(domain, now);
        let mut transaction = self.database().write(DOING).await?;
        Sql::insert(&app).run(&mut transaction, DOING).await?;
        Sql::insert(&domain).run(&mut transaction, DOING).await?;
        self.finish(
            transaction,
            &[Change::App(app.id), Change::Domain(domain.id)],
            DOING,
        )
        .await?;
        Ok((app, domain))
    }

    /// One app.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn app(&self, organization: OrganizationId, id: AppId) -> Result<App> {
        self.get(organization, id, "reading an app").await
    }

    /// One app, whosever it is: for the controller.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn app_unscoped(&self, id: AppId) -> Result<App> {
        self.get_unscoped(id, "reading an app").await
    }

    /// The app with this name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn app_by_name(&self, organization: OrganizationId, name: &str) -> Result<Option<App>> {
        let sql = Sql::select::<App>("WHERE organization_id = $1 AND name = $2")
            .bind(&organization)
            .bind(&name.to_owned());
        self.find(sql, "looking up an app by name").await
    }

    /// Apps, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_apps(
        &self,
        organization: OrganizationId,
        filter: &filter::Apps,
        page: Page,
    ) -> Result<Listed<App>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(condition, "created_at DESC, id DESC", page, "listing apps")
            .await
    }

    /// Ids of apps that the controller has to look at, in order, after one of them: those on their way somewhere.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn apps_needing_attention(&self, after: Option<AppId>, limit: u32) -> Result<Vec<AppId>> {
        const DOING: &str = "looking for apps that need attention";
        let mut sql =
            Sql::new("SELECT id AS value FROM apps WHERE (desired <> 'RUN' OR status <> 'HEALTHY')");
        sql.push_some(" AND id > ", after.as_ref());
        sql.push(" ORDER BY id LIMIT ", &limit);
        sql.values(&mut *self.database().read(DOING).await?, DOING).await
    }

    /// Changes an app.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_app(&self, organization: OrganizationId, id: AppId, edit: &AppEdit) -> Result<App> {
        let sql = edit_app(organization, id, edit, self.now());
        match self.write_one(sql, &[Change::App(id)], "changing an app").await? {
            0 => Err(Error::not_found("app", id)),
            _ => self.app(organization, id).await,
        }
    }

    /// Records that an app and its services should pause or go, with the transitional statuses. What is on its way
    /// out stays so. To resume, see [`Store::resume_app`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is being deleted and should pause, or for `Run`.
    pub async fn set_app_desired(
        &self,
        organization: OrganizationId,
        id: AppId,
        desired: Desired,
    ) -> Result<App> {
        const DOING: &str = "recording what should become of an app";
        let now = self.now();
        let (app_status, service_status) = match desired {
            Desired::Pause => (AppStatus::Pausing, ServiceStatus::Pausing),
            Desired::Delete => (AppStatus::Deleting, ServiceStatus::Deleting),
            Desired::Run => {
                return Err(Error::conflict(
                    "app",
                    id,
                    "resuming needs a deployment of each service",
                ));
            }
        };
        let mut transaction = self.database().write(DOING).await?;
        let app: App = lock_app(&mut transaction, organization, id, now, DOING).await?;
        if app.desired == Desired::Delete && desired != Desired::Delete {
            return Err(Error::conflict("app", id, "it is being deleted"));
        }
        if app.desired != desired {
            set_app(&mut transaction, id, desired, app_status, now, DOING).await?;
        }
        let services = Sql::new(
            "UPDATE services SET desired = $1, status = $2, version = version + 1, updated_at = $3 \
             WHERE app_id = $4 AND desired <> $1 AND desired <> 'DELETE' RETURNING id AS value",
        )
        .bind(&desired)
        .bind(&service_status)
        .bind(&now)
        .bind(&id)
        .values::<ServiceId>(&mut transaction, DOING)
        .await?;
        let app = get_in(&mut transaction, organization, id, DOING).await?;
        let mut changes = vec![Change::App(id)];
        changes.extend(services.into_iter().map(Change::Service));
        self.finish(transaction, &changes, DOING).await?;
        Ok(app)
    }

    /// Records that a paused app should run again, with a new deployment of each service given.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the app or one of the services is not paused.
    pub async fn resume_app(
        &self,
        organization: OrganizationId,
        id: AppId,
        services: Vec<(ServiceId, NewDeployment)>,
    ) -> Result<App> {
        const DOING: &str = "resuming an app";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let app: App = lock_app(&mut transaction, organization, id, now, DOING).await?;
        if app.desired != Desired::Pause {
            return Err(Error::conflict("app", id, "it is not paused"));
        }
        set_app(
            &mut transaction,
            id,
            Desired::Run,
            AppStatus::Resuming,
            now,
            DOING,
        )
        .await?;
        // Every service before any port: who deploys one of them holds it and waits for the ports.
        for (service, _) in &services {
            lock_service(&mut transaction, organization, *service, now, DOING).await?;
        }
        let mut changes = vec![Change::App(id)];
        for (service, deployment) in services {
            let wanted = self.proxy_ports_of(&[]);
            resume(&mut transaction, organization, service, deployment, wanted, now).await?;
            changes.push(Change::Service(service));
        }
        let app = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &changes, DOING).await?;
        Ok(app)
    }

    /// Makes or finds an app and makes or deploys its services, all or nothing.
    ///
    /// # Errors
    /// Those of [`Store::create_app_with_domain`], [`Store::create_service`] and [`Store::add_deployment`].
    pub async fn compose(&self, app: ComposeApp, services: Vec<ComposeService>) -> Result<Composed> {
        const DOING: &str = "composing an app";
        for service in &services {
            if let ComposeService::New(new) = service {
                self.check_owned(new.organization_id, new.project_id, None)
                    .await?;
            }
        }
        let now = self.now();
        let mut changes = Vec::new();
        let mut transaction = self.database().write(DOING).await?;
        let (app, domain) = match app {
            ComposeApp::New(new, domain) => {
                let app = app_of(new, now);
                Sql::insert(&app).run(&mut transaction, DOING).await?;
                let domain = domain.map(|domain| crate::domains::domain_of(domain, now));
                if let Some(domain) = &domain {
                    Sql::insert(domain).run(&mut transaction, DOING).await?;
                    changes.push(Change::Domain(domain.id));
                }
                (app, domain)
            }
            ComposeApp::Existing(organization, id, edit) => {
                let mut app = lock_app(&mut transaction, organization, id, now, DOING).await?;
                if edit != AppEdit::default() {
                    edit_app(organization, id, &edit, now)
                        .run(&mut transaction, DOING)
                        .await?;
                    app = get_in(&mut transaction, organization, id, DOING).await?;
                }
                (app, None)
            }
        };
        changes.push(Change::App(app.id));
        // Every service before any port, as above.
        for service in &services {
            if let ComposeService::Existing(id, ..) = service {
                lock_service(&mut transaction, app.organization_id, *id, now, DOING).await?;
            }
        }
        let mut made: Vec<Deployed> = Vec::with_capacity(services.len());
        for service in services {
            let deployed = match service {
                ComposeService::New(new) => {
                    insert_service(&mut transaction, self.proxy_ports_of(&new.proxy_ports), *new, now).await?
                }
                ComposeService::Existing(id, edit, deployment) => {
                    deploy(
                        &mut transaction,
                        app.organization_id,
                        id,
                        &edit,
                        *deployment,
                        self.proxy_ports_of(&[]),
                        now,
                    )
                    .await?
                }
            };
            changes.push(Change::Service(deployed.service.id));
            made.push(deployed);
        }
        self.finish(transaction, &changes, DOING).await?;
        Ok(Composed {
            app,
            domain,
            services: made,
        })
    }
}

pub(crate) fn app_of(new: NewApp, now: Timestamp) -> App {
    App {
        id: new.id,
        organization_id: new.organization_id,
        name: new.name,
        desired: Desired::Run,
        status: new.status,
        messages: Vec::new(),
        version: 1,
        delete_when_empty: new.delete_when_empty,
        created_at: now,
        updated_at: now,
        started_at: None,
        succeeded_at: None,
        paused_at: None,
        resumed_at: None,
        terminated_at: None,
    }
}

/// Reads an app and keeps others from changing it until the transaction ends: PostgreSQL locks the row that an
/// `UPDATE` touched, SQLite has one writer anyhow.
pub(crate) async fn lock_app(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    id: AppId,
    now: Timestamp,
    doing: &'static str,
) -> Result<App> {
    let touched = Sql::new("UPDATE apps SET updated_at = $1 WHERE id = $2 AND organization_id = $3")
        .bind(&now)
        .bind(&id)
        .bind(&organization)
        .run(connection, doing)
        .await?;
    if touched == 0 {
        return Err(Error::not_found("app", id));
    }
    get_in(connection, organization, id, doing).await
}

/// An app that was paused runs again with the first of its services that does.
pub(crate) async fn run_app(
    connection: &mut AnyConnection,
    app: &App,
    now: Timestamp,
    doing: &'static str,
) -> Result<()> {
    if app.desired != Desired::Pause {
        return Ok(());
    }
    set_app(connection, app.id, Desired::Run, AppStatus::Resuming, now, doing).await
}

fn edit_app(organization: OrganizationId, id: AppId, edit: &AppEdit, now: Timestamp) -> Sql {
    let mut sql = Sql::update::<App>(edit.cells(), now);
    sql.add(", version = version + 1");
    sql.with(" WHERE id = ", &id)
        .with(" AND organization_id = ", &organization)
}

async fn set_app(
    connection: &mut AnyConnection,
    id: AppId,
    desired: Desired,
    status: AppStatus,
    now: Timestamp,
    doing: &'static str,
) -> Result<()> {
    let mut cells = vec![("desired", desired.to_cell()), ("status", status.to_cell())];
    match desired {
        Desired::Pause => cells.push(("paused_at", now.to_cell())),
        Desired::Run => cells.push(("resumed_at", now.to_cell())),
        Desired::Delete => {}
    }
    let mut sql = Sql::update::<App>(cells, now);
    sql.add(", version = version + 1");
    sql.with(" WHERE id = ", &id)
        .run(connection, doing)
        .await
        .map(drop)
}
