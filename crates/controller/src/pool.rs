//! Service pools have as many services ready as their owners want.
//!
//! What a member is made of is the API's knowledge: a [`MemberMaker`] describes it. Everything that matters is in the
//! store, where a member is made and taken in one transaction each, so a crash between any two steps leaks none.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tram_planner::pool::{PoolMember, PoolPlan, PoolView, plan_pool};
use tram_store::{
    Error as StoreError, NewPoolMember, Store,
    record::{Desired, ServicePool},
};
use tram_types::{Clock, ServicePoolId};

use crate::{Deps, driver, error::Error};

/// Between two looks while something is under way: members become healthy without a signal.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks at rest: what signals do not tell, such as a member that became unhealthy.
const LATER: Duration = Duration::from_secs(15);
/// Members are made when nobody has claimed one for so long, as making one takes more of a machine than the claim does:
/// those who claim one after the other get each as quickly as the first. While claims never cease, it is done all the same.
const CALM: driver::Calm = driver::Calm {
    pause: Duration::from_millis(200),
    within: Duration::from_secs(2),
};
/// Pools read at a time: bounds what is held in memory.
const PAGE: u32 = 256;

/// Describes a new member of a pool.
#[async_trait]
pub trait MemberMaker: Send + Sync + Debug {
    /// Decides on names, keys and secrets of one more member.
    ///
    /// # Errors
    /// [`Unmakable`], with words for the owner of the pool.
    async fn member(&self, pool: &ServicePool) -> Result<NewPoolMember, Unmakable>;
}

/// The pool's definition makes no service any more: a secret it names is gone, say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unmakable(pub String);

/// Fills pools.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    clock: Arc<dyn Clock>,
    maker: Arc<dyn MemberMaker>,
    unsettled: AtomicBool,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Members made.
    pub made: usize,
    /// Members given up.
    pub retired: usize,
    /// Pools that are gone.
    pub removed: usize,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        *self == Self::default()
    }
}

impl Reconciler {
    /// With members that `maker` describes.
    #[must_use]
    pub fn new(deps: &Deps, maker: Arc<dyn MemberMaker>) -> Self {
        Self {
            store: deps.store.clone(),
            clock: Arc::clone(&deps.clock),
            maker,
            unsettled: AtomicBool::new(true),
        }
    }

    /// Looks at one pool; says whether something is under way there.
    async fn reconcile(&self, pool: &ServicePool, report: &mut Report) -> Result<bool, Error> {
        let members = self
            .store
            .pool_members(pool.id)
            .await
            .map_err(Error::store("read the members of a service pool"))?;
        let view = PoolView {
            deleted: pool.desired == Desired::Delete,
            size: pool.size,
            generation: pool.generation,
            members: members
                .iter()
                .map(|member| PoolMember {
                    service: member.service_id,
                    generation: member.generation,
                    status: member.status,
                    retired: member.retired,
                    unwanted: member.desired != Desired::Run,
                    created_at: member.created_at,
                })
                .collect(),
        };
        let plan = plan_pool(&view, self.clock.now());
        self.execute(pool, &plan, report).await?;
        Ok(plan.unsettled)
    }

    async fn execute(&self, pool: &ServicePool, plan: &PoolPlan, report: &mut Report) -> Result<(), Error> {
        for service in &plan.retire {
            let retired = self.store.retire_pool_member(pool.id, *service).await;
            report.retired +=
                usize::from(retired.map_err(Error::store("retire a member of a service pool"))?);
        }
        if plan.remove {
            let removed = self.store.remove_service_pool(pool.id).await;
            report.removed += usize::from(removed.map_err(Error::store("remove a service pool"))?);
            return Ok(());
        }
        let mut messages = plan.messages.clone();
        for _ in 0..plan.create {
            let member = match self.maker.member(pool).await {
                Ok(member) => member,
                Err(Unmakable(why)) => {
                    messages.push(why);
                    break;
                }
            };
            match self.store.add_pool_member(pool.id, member).await {
                Ok(_) => report.made += 1,
                // A name that was drawn twice: another one next time.
                Err(StoreError::AlreadyExists { .. }) => break,
                Err(error) => return Err(Error::store("make a member of a service pool")(error)),
            }
        }
        if messages != pool.messages {
            self.store
                .set_pool_messages(pool.id, &messages)
                .await
                .map_err(Error::store("show what is wrong with a service pool"))?;
        }
        Ok(())
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "pool"
    }

    fn period(&self) -> Duration {
        if self.unsettled.load(Ordering::Relaxed) {
            SOON
        } else {
            LATER
        }
    }

    fn calm(&self) -> Option<driver::Calm> {
        Some(CALM)
    }

    async fn run(&self) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut unsettled = false;
        let mut after: Option<ServicePoolId> = None;
        loop {
            let pools = self
                .store
                .service_pools_unscoped(after, PAGE)
                .await
                .map_err(Error::store("read the service pools"))?;
            for pool in &pools {
                match self.reconcile(pool, &mut report).await {
                    Ok(busy) => unsettled |= busy,
                    // One pool must not hold back the others; it is looked at again soon.
                    Err(error) => {
                        unsettled = true;
                        tracing::warn!(
                            pool = %pool.id,
                            error = &error as &dyn std::error::Error,
                            "a service pool could not be looked after and will be tried again"
                        );
                    }
                }
            }
            match pools.last() {
                Some(last) if pools.len() == PAGE as usize => after = Some(last.id),
                _ => break,
            }
        }
        self.unsettled.store(unsettled, Ordering::Relaxed);
        Ok(report)
    }
}
