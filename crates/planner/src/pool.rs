//! Which services a pool makes and which it gives up.
//!
//! A pool is always judged from what is there: nothing is remembered between two looks. A member that cannot be had
//! stays for [`RETRY_AFTER`] as the proof of what is wrong and keeps its place meanwhile, so a definition that never
//! becomes healthy costs one start a place in that time and no hot loop.

use std::time::Duration;

use tram_types::{ServiceId, Timestamp, status::ServiceStatus};

/// Members that start at the same time in one pool: more would only wait for each other's processors and disks.
pub const STARTING_MAX: usize = 8;
/// Time from the making of a member that failed to the next try in its place. Long enough that a broken definition
/// costs next to nothing, short enough that the owner of a mended image need not do anything.
pub const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// Whether its owner wants it gone.
    pub deleted: bool,
    /// How many services it should have ready.
    pub size: u32,
    /// Counts its definitions.
    pub generation: i64,
    /// What waits in it or is on its way out, oldest first. What was taken is not here any more.
    pub members: Vec<PoolMember>,
}

/// A service of a pool that nobody took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolMember {
    /// Which.
    pub service: ServiceId,
    /// The pool's generation it was made from.
    pub generation: i64,
    /// What was confirmed of it.
    pub status: ServiceStatus,
    /// Whether it is on its way out: the pool gave it up.
    pub retired: bool,
    /// Whether somebody paused or deleted it by hand.
    pub unwanted: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl PoolMember {
    const fn is_ready(&self) -> bool {
        matches!(self.status, ServiceStatus::Healthy)
    }

    const fn has_failed(&self) -> bool {
        matches!(self.status, ServiceStatus::Unhealthy | ServiceStatus::Degraded)
    }
}

/// What to do for a pool now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolPlan {
    /// Members to make.
    pub create: u32,
    /// Members to give up and delete.
    pub retire: Vec<ServiceId>,
    /// Whether to forget the pool: it is to go and holds nothing.
    pub remove: bool,
    /// Why members cannot be had, for its owner; empty when nothing is wrong.
    pub messages: Vec<String>,
    /// Whether something is under way, so that it is worth to look again soon.
    pub unsettled: bool,
}

/// Decides for one pool.
#[must_use]
pub fn plan_pool(view: &PoolView, now: Timestamp) -> PoolPlan {
    let present: Vec<&PoolMember> = view.members.iter().filter(|member| !member.retired).collect();
    if view.deleted {
        return PoolPlan {
            retire: present.iter().map(|member| member.service).collect(),
            remove: view.members.is_empty(),
            unsettled: true,
            ..PoolPlan::default()
        };
    }
    let stale = |member: &&PoolMember| {
        member.generation != view.generation
            || member.unwanted
            || (member.has_failed() && now >= member.created_at.plus(RETRY_AFTER))
    };
    let (gone, mut kept): (Vec<&PoolMember>, Vec<&PoolMember>) = present.into_iter().partition(stale);
    // The ready ones stay, and of them the oldest, which are taken first.
    kept.sort_by_key(|member| (!member.is_ready(), member.created_at, member.service));
    let size = usize::try_from(view.size).unwrap_or(usize::MAX);
    let surplus = kept.split_off(size.min(kept.len()));
    let starting = kept
        .iter()
        .filter(|member| !member.is_ready() && !member.has_failed())
        .count();
    let failed = kept.iter().filter(|member| member.has_failed()).count();
    // What just went for having failed is still what is known of this definition, until its successor says more.
    let given_up = gone
        .iter()
        .filter(|member| member.generation == view.generation && member.has_failed())
        .count();
    let create = (size - kept.len()).min(STARTING_MAX.saturating_sub(starting));
    let retire: Vec<ServiceId> = gone.iter().chain(&surplus).map(|member| member.service).collect();
    let ready = kept.len() - starting - failed;
    PoolPlan {
        create: u32::try_from(create).unwrap_or(u32::MAX),
        unsettled: ready < size || !retire.is_empty() || view.members.iter().any(|member| member.retired),
        messages: trouble(failed + given_up),
        retire,
        remove: false,
    }
}

fn trouble(failed: usize) -> Vec<String> {
    match failed {
        0 => Vec::new(),
        failed => vec![format!(
            "{failed} of its services did not become healthy; each is replaced {} seconds after it was made: \
             see their events and logs for the cause",
            RETRY_AFTER.as_secs()
        )],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_micros(10_000_000_000)
    }

    fn member(status: ServiceStatus, age_seconds: i64) -> PoolMember {
        PoolMember {
            service: ServiceId::random(),
            generation: 1,
            status,
            retired: false,
            unwanted: false,
            created_at: Timestamp::from_micros(now().as_micros() - age_seconds * 1_000_000),
        }
    }

    fn pool(size: u32, members: Vec<PoolMember>) -> PoolView {
        PoolView {
            deleted: false,
            size,
            generation: 1,
            members,
        }
    }

    #[test]
    fn a_pool_makes_what_it_lacks_a_few_at_a_time() {
        let plan = plan_pool(&pool(3, vec![member(ServiceStatus::Healthy, 1)]), now());
        assert_eq!((plan.create, plan.retire.len()), (2, 0));
        let plan = plan_pool(&pool(100, Vec::new()), now());
        assert_eq!(plan.create as usize, STARTING_MAX);
        let starting = vec![member(ServiceStatus::Starting, 1); STARTING_MAX];
        assert_eq!(plan_pool(&pool(100, starting), now()).create, 0);
    }

    #[test]
    fn a_full_pool_rests() {
        let plan = plan_pool(&pool(1, vec![member(ServiceStatus::Healthy, 1)]), now());
        assert_eq!(plan, PoolPlan::default());
    }

    #[test]
    fn a_smaller_pool_keeps_what_is_ready() {
        let (ready, starting) = (
            member(ServiceStatus::Healthy, 1),
            member(ServiceStatus::Starting, 9),
        );
        let plan = plan_pool(&pool(1, vec![starting, ready]), now());
        assert_eq!((plan.create, plan.retire), (0, vec![starting.service]));
    }

    #[test]
    fn members_of_an_older_definition_are_replaced() {
        let old = member(ServiceStatus::Healthy, 1);
        let mut view = pool(1, vec![old]);
        view.generation = 2;
        let plan = plan_pool(&view, now());
        assert_eq!((plan.create, plan.retire), (1, vec![old.service]));
    }

    #[test]
    fn a_member_that_failed_holds_its_place_until_it_is_tried_again() {
        let failed = member(ServiceStatus::Unhealthy, 1);
        let plan = plan_pool(&pool(1, vec![failed]), now());
        assert_eq!((plan.create, plan.retire.len(), plan.messages.len()), (0, 0, 1));
        let failed = member(ServiceStatus::Unhealthy, 60);
        let plan = plan_pool(&pool(1, vec![failed]), now());
        assert_eq!((plan.create, plan.retire), (1, vec![failed.service]));
    }

    #[test]
    fn a_deleted_pool_goes_after_its_last_member() {
        let mut view = pool(2, vec![member(ServiceStatus::Healthy, 1)]);
        view.deleted = true;
        let plan = plan_pool(&view, now());
        assert_eq!((plan.create, plan.retire.len(), plan.remove), (0, 1, false));
        view.members[0].retired = true;
        let plan = plan_pool(&view, now());
        assert_eq!((plan.retire.len(), plan.remove), (0, false));
        view.members.clear();
        assert!(plan_pool(&view, now()).remove);
    }

    fn any_member() -> impl Strategy<Value = PoolMember> {
        let status = prop_oneof![
            Just(ServiceStatus::Starting),
            Just(ServiceStatus::Healthy),
            Just(ServiceStatus::Degraded),
            Just(ServiceStatus::Unhealthy),
            Just(ServiceStatus::Paused),
            Just(ServiceStatus::Deleting),
        ];
        (status, 0_i64..200, 1_i64..3, any::<bool>(), any::<bool>()).prop_map(
            |(status, age, generation, retired, unwanted)| PoolMember {
                generation,
                retired,
                unwanted,
                ..member(status, age)
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_never_overfills_a_pool_nor_gives_up_what_is_ready_without_need(
            size in 1_u32..20,
            generation in 1_i64..3,
            members in prop::collection::vec(any_member(), 0..30),
        ) {
            let view = PoolView { deleted: false, size, generation, members };
            let plan = plan_pool(&view, now());
            let present = view.members.iter().filter(|member| !member.retired).count();
            let after = present - plan.retire.len() + plan.create as usize;
            prop_assert!(after <= size as usize);
            let good = view.members.iter().filter(|member| {
                !member.retired && !member.unwanted && member.generation == generation && member.is_ready()
            });
            let (total, retired) = good.fold((0, 0), |(total, retired), member| {
                (total + 1, retired + usize::from(plan.retire.contains(&member.service)))
            });
            prop_assert_eq!(retired, usize::saturating_sub(total, size as usize));
        }
    }
}
