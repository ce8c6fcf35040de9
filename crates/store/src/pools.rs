//! Service pools, their members and claims.
//!
//! A member is a service with a row in `pool_members`. Making one writes the app, the service and that row in one
//! transaction, so a crash leaks none; taking one removes the row, so none is taken twice. Every such transaction first
//! holds the pool's row: claims of one pool queue up, and each is a few statements.

use std::collections::BTreeMap;

use sqlx::AnyConnection;
use tram_types::{
    ClaimId, OrganizationId, ServiceId, ServicePoolId, Timestamp,
    status::{AppStatus, PoolClaimStatus, ServiceStatus},
};

use crate::{
    Change, Store,
    apps::app_of,
    column::Column as _,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{NewApp, NewDomain, NewService},
    leadership::check_epoch,
    record::{Claim, Desired, ManualScaling, PoolMember, Record as _, Service, ServicePool},
    services::insert_service,
    sql::{Sql, read},
    store::get_in,
};

/// A new pool.
#[derive(Debug, Clone)]
pub struct NewServicePool {
    /// Its id.
    pub id: ServicePoolId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Unique in the organization.
    pub name: String,
    /// How many services it keeps ready.
    pub size: u32,
    /// What each of them is.
    pub definition: serde_json::Value,
    /// Who makes it.
    pub created_by: String,
}

/// Changes of a pool by its owner: what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct ServicePoolEdit {
    /// New size.
    pub size: Option<u32>,
    /// New definition: members of the old one are replaced.
    pub definition: Option<serde_json::Value>,
}

/// A new service for a pool, with an app of its own.
#[derive(Debug, Clone)]
pub struct NewPoolMember {
    /// The pool's generation it was made from.
    pub generation: i64,
    /// Its app.
    pub app: NewApp,
    /// The app's domain.
    pub domain: NewDomain,
    /// The service.
    pub service: NewService,
    /// Keeps it awake for as long as it waits: the override of its scaling until it is taken.
    pub awake: Vec<ManualScaling>,
}

impl Store {
    /// Makes a pool. `members_max`: how many services all pools of the organization may keep ready together.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name; [`Error::Exhausted`] when there would be more.
    pub async fn create_service_pool(&self, new: NewServicePool, members_max: u32) -> Result<ServicePool> {
        const DOING: &str = "making a service pool";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        has_room(
            &mut transaction,
            new.organization_id,
            None,
            new.size,
            members_max,
            DOING,
        )
        .await?;
        let pool = ServicePool {
            id: new.id,
            organization_id: new.organization_id,
            name: new.name,
            size: new.size,
            definition: new.definition,
            desired: Desired::Run,
            messages: Vec::new(),
            generation: 1,
            created_by: new.created_by,
            created_at: now,
            updated_at: now,
        };
        Sql::insert(&pool).run(&mut transaction, DOING).await?;
        self.finish(transaction, &[Change::Pool(pool.id)], DOING).await?;
        Ok(pool)
    }

    /// One pool.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn service_pool(&self, organization: OrganizationId, id: ServicePoolId) -> Result<ServicePool> {
        self.get(organization, id, "reading a service pool").await
    }

    /// Pools, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_service_pools(
        &self,
        organization: OrganizationId,
        name: Option<&String>,
        page: Page,
    ) -> Result<Listed<ServicePool>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND name = ", name);
        self.list(
            condition,
            "created_at DESC, id DESC",
            page,
            "listing service pools",
        )
        .await
    }

    /// Every pool of every organization, in order, after one of them: for the controller.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn service_pools_unscoped(
        &self,
        after: Option<ServicePoolId>,
        limit: u32,
    ) -> Result<Vec<ServicePool>> {
        const DOING: &str = "reading service pools";
        let mut sql = Sql::select::<ServicePool>("WHERE 1 = 1");
        sql.push_some(" AND id > ", after.as_ref());
        sql.push(" ORDER BY id LIMIT ", &limit);
        sql.all(&mut *self.database().read(DOING).await?, DOING).await
    }

    /// How many services of each pool of an organization may be taken now; pools with none are left out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pool_ready_counts(
        &self,
        organization: OrganizationId,
    ) -> Result<BTreeMap<ServicePoolId, u32>> {
        const DOING: &str = "counting the ready members of service pools";
        let rows = Sql::new(format!(
            "SELECT service_pools.id AS pool, COUNT(*) AS ready FROM service_pools \
             JOIN pool_members ON pool_members.pool_id = service_pools.id \
             JOIN services ON services.id = pool_members.service_id \
             WHERE service_pools.organization_id = $1 \
             AND pool_members.generation = service_pools.generation AND {READY} GROUP BY service_pools.id"
        ))
        .bind(&organization)
        .rows(&mut *self.database().read(DOING).await?, DOING)
        .await?;
        rows.iter()
            .map(|row| Ok((read(row, "pool", DOING)?, read(row, "ready", DOING)?)))
            .collect()
    }

    /// Changes a pool. A new definition counts up its generation. `members_max`: how many services all pools of the
    /// organization may keep ready together; a pool that is there already may stay as large as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is being deleted; [`Error::Exhausted`] when there would be more.
    pub async fn update_service_pool(
        &self,
        organization: OrganizationId,
        id: ServicePoolId,
        edit: ServicePoolEdit,
        members_max: u32,
    ) -> Result<ServicePool> {
        const DOING: &str = "changing a service pool";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        if let Some(size) = edit.size {
            has_room(&mut transaction, organization, Some(id), size, members_max, DOING).await?;
        }
        let pool = lock_pool(&mut transaction, Some(organization), id, DOING).await?;
        check_runs(&pool)?;
        let mut cells = vec![("messages", Vec::<String>::new().to_cell())];
        if let Some(size) = edit.size {
            cells.push(("size", size.to_cell()));
        }
        if let Some(definition) = edit.definition.filter(|given| *given != pool.definition) {
            cells.push(("definition", definition.to_cell()));
            cells.push(("generation", (pool.generation + 1).to_cell()));
        }
        Sql::update::<ServicePool>(cells, now)
            .with(" WHERE id = ", &id)
            .run(&mut transaction, DOING)
            .await?;
        let pool = get_in(&mut transaction, organization, id, DOING).await?;
        self.finish(transaction, &[Change::Pool(id)], DOING).await?;
        Ok(pool)
    }

    /// Records that a pool should go, with the members nobody took. Asking twice is fine.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_service_pool(&self, organization: OrganizationId, id: ServicePoolId) -> Result<()> {
        let cells = vec![("desired", Desired::Delete.to_cell())];
        let sql = Sql::update::<ServicePool>(cells, self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        match self
            .write_one(sql, &[Change::Pool(id)], "deleting a service pool")
            .await?
        {
            0 => Err(Error::not_found(ServicePool::KIND, id)),
            _ => Ok(()),
        }
    }

    /// Records why members of a pool cannot be had; nothing when that is known already.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn set_pool_messages(&self, id: ServicePoolId, messages: &[String]) -> Result<()> {
        let messages = messages.to_vec();
        let sql = Sql::update::<ServicePool>(vec![("messages", messages.to_cell())], self.now())
            .with(" WHERE id = ", &id)
            .with(" AND messages <> ", &messages);
        // Nobody has to act on it.
        self.write_one(sql, &[], "recording the state of a service pool")
            .await
            .map(drop)
    }

    /// What waits in a pool or is on its way out of it, oldest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pool_members(&self, pool: ServicePoolId) -> Result<Vec<PoolMember>> {
        const DOING: &str = "reading the members of a service pool";
        let rows = Sql::new(
            "SELECT pool_members.service_id AS service_id, pool_members.generation AS generation, \
             pool_members.retired AS retired, pool_members.created_at AS created_at, \
             services.status AS status, services.desired AS desired \
             FROM pool_members JOIN services ON services.id = pool_members.service_id \
             WHERE pool_members.pool_id = $1 ORDER BY pool_members.created_at, pool_members.service_id",
        )
        .bind(&pool)
        .rows(&mut *self.database().read(DOING).await?, DOING)
        .await?;
        let member = |row| {
            Ok(PoolMember {
                service_id: read(row, "service_id", DOING)?,
                generation: read(row, "generation", DOING)?,
                retired: read(row, "retired", DOING)?,
                status: read(row, "status", DOING)?,
                desired: read(row, "desired", DOING)?,
                created_at: read(row, "created_at", DOING)?,
            })
        };
        rows.iter().map(member).collect()
    }

    /// Makes a service that waits in a pool: for the controller.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the pool is being deleted, has another definition by now or is full;
    /// [`Error::AlreadyExists`] for a name.
    pub async fn add_pool_member(&self, pool: ServicePoolId, new: NewPoolMember) -> Result<ServiceId> {
        const DOING: &str = "making a member of a service pool";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let held = lock_pool(&mut transaction, None, pool, DOING).await?;
        check_runs(&held)?;
        let waiting =
            Sql::new("SELECT COUNT(*) AS value FROM pool_members WHERE pool_id = $1 AND retired = 0")
                .bind(&pool)
                .value::<u32>(&mut transaction, DOING)
                .await?;
        if held.generation != new.generation || waiting >= Some(held.size) {
            return Err(Error::conflict(
                ServicePool::KIND,
                pool,
                "it needs no such member any more",
            ));
        }
        let generation = new.generation;
        let awake = new.awake.clone();
        let (service, changes) = self.insert_member(&mut transaction, new, now, DOING).await?;
        Sql::update::<Service>(vec![("manual_scaling", awake.to_cell())], now)
            .with(" WHERE id = ", &service)
            .run(&mut transaction, DOING)
            .await?;
        Sql::new(
            "INSERT INTO pool_members (service_id, pool_id, generation, retired, created_at) \
             VALUES ($1, $2, $3, 0, $4)",
        )
        .bind(&service)
        .bind(&pool)
        .bind(&generation)
        .bind(&now)
        .run(&mut transaction, DOING)
        .await?;
        self.finish(transaction, &changes, DOING).await?;
        Ok(service)
    }

    /// Makes the app, its domain and the service of a member.
    async fn insert_member(
        &self,
        connection: &mut AnyConnection,
        new: NewPoolMember,
        now: Timestamp,
        doing: &'static str,
    ) -> Result<(ServiceId, Vec<Change>)> {
        let app = app_of(new.app, now);
        Sql::insert(&app).run(connection, doing).await?;
        let domain = crate::domains::domain_of(new.domain, now);
        Sql::insert(&domain).run(connection, doing).await?;
        let ports = self.proxy_ports_of(&new.service.proxy_ports);
        let made = insert_service(connection, ports, new.service, now).await?;
        let changes = vec![
            Change::App(app.id),
            Change::Domain(domain.id),
            Change::Service(made.service.id),
        ];
        Ok((made.service.id, changes))
    }

    /// Sends a member out of its pool and deletes it with its app; false when it is no member any more, as one that was
    /// just taken: for the controller.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the pool; [`Error::Conflict`] when another process took the leadership.
    pub async fn retire_pool_member(&self, pool: ServicePoolId, service: ServiceId) -> Result<bool> {
        const DOING: &str = "retiring a member of a service pool";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        lock_pool(&mut transaction, None, pool, DOING).await?;
        let retired = Sql::new("UPDATE pool_members SET retired = 1 WHERE service_id = $1 AND pool_id = $2")
            .bind(&service)
            .bind(&pool)
            .run(&mut transaction, DOING)
            .await?;
        if retired == 0 {
            return Ok(false);
        }
        let app = Sql::new("SELECT app_id AS value FROM services WHERE id = $1")
            .bind(&service)
            .value(&mut transaction, DOING)
            .await?;
        let Some(app) = app else { return Ok(false) };
        Sql::new(
            "UPDATE apps SET desired = $1, status = $2, version = version + 1, updated_at = $3 \
             WHERE id = $4 AND desired <> $1",
        )
        .bind(&Desired::Delete)
        .bind(&AppStatus::Deleting)
        .bind(&now)
        .bind(&app)
        .run(&mut transaction, DOING)
        .await?;
        Sql::new(
            "UPDATE services SET desired = $1, status = $2, version = version + 1, updated_at = $3 \
             WHERE app_id = $4 AND desired <> $1",
        )
        .bind(&Desired::Delete)
        .bind(&ServiceStatus::Deleting)
        .bind(&now)
        .bind(&app)
        .run(&mut transaction, DOING)
        .await?;
        self.finish(transaction, &[Change::App(app), Change::Service(service)], DOING)
            .await?;
        Ok(true)
    }

    /// Forgets a pool that should go once its last member is gone, with its claims; says whether it did.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another process took the leadership.
    pub async fn remove_service_pool(&self, id: ServicePoolId) -> Result<bool> {
        const DOING: &str = "removing a service pool";
        let mut transaction = self.database().write(DOING).await?;
        check_epoch(&mut transaction, self.epoch(), DOING).await?;
        let pool = lock_pool(&mut transaction, None, id, DOING).await?;
        let left = Sql::new("SELECT COUNT(*) AS value FROM pool_members WHERE pool_id = $1")
            .bind(&id)
            .value::<u32>(&mut transaction, DOING)
            .await?;
        if pool.desired != Desired::Delete || left != Some(0) {
            return Ok(false);
        }
        for sql in [
            "DELETE FROM claims WHERE pool_id = $1",
            "DELETE FROM service_pools WHERE id = $1",
        ] {
            Sql::new(sql).bind(&id).run(&mut transaction, DOING).await?;
        }
        self.finish(transaction, &[Change::Pool(id)], DOING).await?;
        Ok(true)
    }

    /// Takes a ready service from a pool, or the one that `request` took before. Without a ready one, takes `cold`,
    /// which is made for it; `None` when that was not given either.
    ///
    /// From then on its owner is the caller: it scales and sleeps as its definition says, from now.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the pool is being deleted, or has another definition than `cold`;
    /// [`Error::AlreadyExists`] for a name of `cold`.
    pub async fn claim(
        &self,
        organization: OrganizationId,
        pool: ServicePoolId,
        request: &str,
        cold: Option<NewPoolMember>,
    ) -> Result<Option<Claim>> {
        const DOING: &str = "claiming a service of a pool";
        let now = self.now();
        let mut transaction = self.database().write(DOING).await?;
        let held = lock_pool(&mut transaction, Some(organization), pool, DOING).await?;
        let known = Sql::select::<Claim>("WHERE pool_id = $1 AND request_id = $2")
            .bind(&pool)
            .bind(&request.to_owned())
            .optional::<Claim>(&mut transaction, DOING)
            .await?;
        if known.is_some() {
            return Ok(known);
        }
        check_runs(&held)?;
        let (service, prewarmed, mut changes) = match (take(&mut transaction, &held, now, DOING).await?, cold)
        {
            // As a call would: the time it may be idle begins now.
            (Some(service), _) => (
                service,
                true,
                vec![Change::Wake(service), Change::Service(service)],
            ),
            (None, Some(cold)) => {
                if cold.generation != held.generation {
                    return Err(Error::conflict(
                        ServicePool::KIND,
                        pool,
                        "its definition just changed; try again",
                    ));
                }
                let (service, changes) = self.insert_member(&mut transaction, cold, now, DOING).await?;
                (service, false, changes)
            }
            (None, None) => return Ok(None),
        };
        let claim = Claim {
            id: ClaimId::random(),
            organization_id: organization,
            pool_id: pool,
            service_id: service,
            request_id: request.to_owned(),
            status: PoolClaimStatus::Fulfilled,
            prewarmed,
            pool_generation: held.generation,
            created_at: now,
            fulfilled_at: Some(now),
            released_at: None,
        };
        Sql::insert(&claim).run(&mut transaction, DOING).await?;
        changes.push(Change::Pool(pool));
        self.finish(transaction, &changes, DOING).await?;
        Ok(Some(claim))
    }

    /// One claim.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn pool_claim(&self, organization: OrganizationId, id: ClaimId) -> Result<Claim> {
        self.get(organization, id, "reading a claim").await
    }

    /// Claims of a pool, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_pool_claims(
        &self,
        organization: OrganizationId,
        filter: &filter::Claims,
        page: Page,
    ) -> Result<Listed<Claim>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND pool_id = ", filter.pool_id.as_ref());
        condition.push_some(" AND status = ", filter.status.as_ref());
        self.list(condition, "created_at DESC, id DESC", page, "listing claims")
            .await
    }
}

/// What a member that may be taken is like.
const READY: &str = "pool_members.retired = 0 AND services.desired = 'RUN' AND services.status = 'HEALTHY'";

/// Takes the oldest ready member.
async fn take(
    connection: &mut AnyConnection,
    pool: &ServicePool,
    now: Timestamp,
    doing: &'static str,
) -> Result<Option<ServiceId>> {
    let ready = Sql::new(format!(
        "SELECT pool_members.service_id AS value FROM pool_members \
         JOIN services ON services.id = pool_members.service_id \
         WHERE pool_members.pool_id = $1 AND pool_members.generation = $2 AND {READY} \
         ORDER BY pool_members.created_at, pool_members.service_id"
    ))
    .bind(&pool.id)
    .bind(&pool.generation)
    .values::<ServiceId>(connection, doing)
    .await?;
    for service in ready {
        // Its status may be another by now: PostgreSQL's readers do not hold what they read.
        let ours = Sql::new(
            "UPDATE services SET manual_scaling = $1, version = version + 1, updated_at = $2 \
             WHERE id = $3 AND desired = 'RUN' AND status = 'HEALTHY'",
        )
        .bind(&Vec::<ManualScaling>::new())
        .bind(&now)
        .bind(&service)
        .run(connection, doing)
        .await?;
        if ours == 0 {
            continue;
        }
        Sql::new("DELETE FROM pool_members WHERE service_id = $1")
            .bind(&service)
            .run(connection, doing)
            .await?;
        return Ok(Some(service));
    }
    Ok(None)
}

/// Reads a pool and keeps others from changing it until the transaction ends.
async fn lock_pool(
    connection: &mut AnyConnection,
    organization: Option<OrganizationId>,
    id: ServicePoolId,
    doing: &'static str,
) -> Result<ServicePool> {
    let mut sql = Sql::default().with("UPDATE service_pools SET size = size WHERE id = ", &id);
    sql.push_some(" AND organization_id = ", organization.as_ref());
    if sql.run(connection, doing).await? == 0 {
        return Err(Error::not_found(ServicePool::KIND, id));
    }
    Sql::select::<ServicePool>("WHERE id = $1")
        .bind(&id)
        .optional(connection, doing)
        .await?
        .ok_or_else(|| Error::not_found(ServicePool::KIND, id))
}

/// Refuses a pool of this size when all of the organization's would keep more ready than they may, unless it is the
/// one that is changed and grows no further. Until the transaction ends nobody else makes or changes one of them.
async fn has_room(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    changed: Option<ServicePoolId>,
    size: u32,
    members_max: u32,
    doing: &'static str,
) -> Result<()> {
    Sql::default()
        .with("UPDATE organizations SET name = name WHERE id = ", &organization)
        .run(connection, doing)
        .await?;
    let others = Sql::new("SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) AS value FROM service_pools")
        .with(" WHERE organization_id = ", &organization)
        .with(" AND desired <> ", &Desired::Delete);
    let all = others.value::<u64>(connection, doing).await?.unwrap_or(0);
    let before = match changed {
        None => 0,
        Some(id) => {
            let of_it = Sql::new("SELECT size AS value FROM service_pools")
                .with(" WHERE organization_id = ", &organization)
                .with(" AND id = ", &id)
                .with(" AND desired <> ", &Desired::Delete);
            of_it.value::<u32>(connection, doing).await?.unwrap_or(0)
        }
    };
    let others = all.saturating_sub(before.into());
    if size <= before || others + u64::from(size) <= u64::from(members_max) {
        return Ok(());
    }
    Err(Error::Exhausted {
        what: "place in service pools",
        hint: format!(
            "the organization's other pools keep {others} services ready, this one would keep {size}, and all together may \
             keep {members_max} (`pool_members_max`): choose a smaller size, or make others smaller"
        ),
    })
}

fn check_runs(pool: &ServicePool) -> Result<()> {
    match pool.desired {
        Desired::Delete => Err(Error::conflict(ServicePool::KIND, pool.id, "it is being deleted")),
        Desired::Run | Desired::Pause => Ok(()),
    }
}
