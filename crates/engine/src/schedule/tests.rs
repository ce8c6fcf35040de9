//! Laws of the scheduler, and the workloads they are there for.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    slots: 4,
    prefill_beside_decoding: 32,
    prefill_alone: 64,
};
/// Cells that are never short.
const PLENTY: usize = 1 << 20;

fn entry(id: JobId, tenant: TenantId, tokens: usize) -> Entry {
    Entry {
        id,
        tenant,
        priority: Priority::Normal,
        tokens,
        slots: 1,
    }
}

/// Nothing is cached.
fn fresh(scheduler: &Scheduler) -> HashMap<JobId, Needs> {
    let needs = |entry: &Entry| Needs {
        prefill: entry.tokens,
        cells: entry.tokens,
    };
    scheduler
        .waiting()
        .map(|entry| (entry.id, needs(entry)))
        .collect()
}

fn step(scheduler: &mut Scheduler) -> Plan {
    let needs = fresh(scheduler);
    scheduler.plan(PLENTY, |id| needs[&id])
}

/// Steps until this job has its first token; how many.
fn steps_to_first_token(scheduler: &mut Scheduler, id: JobId) -> usize {
    for steps in 1.. {
        let plan = step(scheduler);
        if plan.prefill.iter().any(|part| part.job == id && part.last) {
            return steps;
        }
        assert!(steps < 10_000, "job {id} never came to its turn");
    }
    unreachable!()
}

#[test]
fn a_prompt_is_read_in_parts_and_decoding_goes_on() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.submit(entry(1, 1, 10));
    assert_eq!(
        step(&mut scheduler).prefill,
        [Prefill {
            job: 1,
            tokens: 10,
            last: true
        }]
    );
    scheduler.submit(entry(2, 1, 1000));
    for _ in 0..1000 / LIMITS.prefill_beside_decoding {
        let plan = step(&mut scheduler);
        assert_eq!(plan.decode, [1]);
        assert_eq!(plan.prefill[0].tokens, LIMITS.prefill_beside_decoding);
    }
    assert_eq!(
        step(&mut scheduler).prefill,
        [Prefill {
            job: 2,
            tokens: 8,
            last: true
        }]
    );
    assert_eq!(step(&mut scheduler).decode, [1, 2]);
}

#[test]
fn a_short_prompt_overtakes_a_long_one_but_not_for_ever() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.submit(entry(1, 1, 4000));
    step(&mut scheduler);
    scheduler.submit(entry(2, 1, 20));
    assert_eq!(steps_to_first_token(&mut scheduler, 2), 1);
    // A stream of short ones, as many as there is budget for.
    let mut next = 3;
    let mut steps = 0;
    loop {
        scheduler.submit(entry(next, 1, LIMITS.prefill_alone));
        let plan = step(&mut scheduler);
        if plan.prefill.iter().any(|part| part.job == 1 && part.last) {
            break;
        }
        for part in plan.prefill.iter().filter(|part| part.last) {
            scheduler.remove(part.job);
        }
        next += 1;
        steps += 1;
        assert!(steps < 1000, "the long prompt starves");
    }
}

/// A tenant comes with 200 requests, numbered from 101, and has all slots after so many steps.
fn crowd(scheduler: &mut Scheduler, tenant: TenantId, steps: usize) {
    for id in 101..=300 {
        scheduler.submit(entry(id, tenant, 20));
    }
    for _ in 0..steps {
        step(scheduler);
    }
    assert_eq!(scheduler.running().len(), LIMITS.slots);
}

#[test]
fn one_tenant_with_many_does_not_keep_another_waiting() {
    let mut scheduler = Scheduler::new(LIMITS);
    crowd(&mut scheduler, 1, 50);
    scheduler.submit(entry(1000, 2, 20));
    let plan = step(&mut scheduler);
    assert_eq!(plan.preempt.len(), 1, "a slot is made free at once");
    assert_eq!(plan.admit, [1000]);
    // One who has nothing more than a share gives nothing back.
    for _ in 0..50 {
        let plan = step(&mut scheduler);
        assert!(plan.preempt.is_empty(), "{plan:?}");
        assert!(plan.decode.contains(&1000));
    }
}

#[test]
fn who_had_the_engine_for_itself_does_not_pay_for_it_when_others_come() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=20 {
        scheduler.submit(entry(id, 1, 50));
        while !scheduler.running().iter().any(|job| job.prefill_left == 0) {
            step(&mut scheduler);
        }
        scheduler.remove(id);
    }
    crowd(&mut scheduler, 2, 4);
    scheduler.submit(entry(1000, 1, 20));
    assert_eq!(step(&mut scheduler).admit, [1000]);
}

#[test]
fn the_urgent_go_first_and_the_others_come_back() {
    let mut scheduler = Scheduler::new(Limits { slots: 1, ..LIMITS });
    scheduler.submit(entry(1, 1, 20));
    step(&mut scheduler);
    scheduler.submit(Entry {
        priority: Priority::High,
        ..entry(2, 1, 20)
    });
    let plan = step(&mut scheduler);
    assert_eq!((plan.preempt, plan.admit), (vec![1], vec![2]));
    scheduler.submit(Entry {
        priority: Priority::Low,
        ..entry(3, 9, 20)
    });
    scheduler.remove(2);
    assert_eq!(step(&mut scheduler).admit, [1]);
}

#[test]
fn when_the_cells_run_out_the_last_that_came_gives_way() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.submit(entry(1, 1, 10));
    step(&mut scheduler);
    scheduler.submit(entry(2, 1, 10));
    step(&mut scheduler);
    let needs = fresh(&scheduler);
    let plan = scheduler.plan(1, |id| needs[&id]);
    assert_eq!((plan.preempt, plan.decode), (vec![2], vec![1]));
}

#[test]
fn several_answers_go_on_by_themselves() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.submit(Entry {
        slots: 3,
        ..entry(1, 1, 10)
    });
    step(&mut scheduler);
    scheduler.split(1, &[2, 3]);
    assert_eq!(step(&mut scheduler).decode, [1, 2, 3]);
    scheduler.remove(2);
    scheduler.submit(entry(4, 1, 10));
    scheduler.submit(entry(5, 1, 10));
    scheduler.submit(entry(6, 1, 10));
    assert_eq!(step(&mut scheduler).admit.len(), 2, "of four slots two are taken");
}

#[test]
fn who_needs_all_cells_comes_in_when_it_is_alone() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.submit(Entry {
        slots: 4,
        ..entry(1, 1, 100)
    });
    scheduler.submit(entry(2, 1, 1));
    let needs = fresh(&scheduler);
    let plan = scheduler.plan(100, |id| needs[&id]);
    assert_eq!(plan.admit, [1], "and who comes later waits for its room");
}

#[derive(Debug, Clone)]
enum Act {
    Submit {
        tenant: TenantId,
        priority: u8,
        tokens: usize,
        slots: usize,
    },
    Remove(usize),
    Step(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u32..4, 0u8..3, 1usize..200, 1usize..4)
            .prop_map(|(tenant, priority, tokens, slots)| Act::Submit { tenant, priority, tokens, slots }),
        1 => (0usize..50).prop_map(Act::Remove),
        4 => (0usize..400).prop_map(Act::Step),
    ]
}

proptest! {
    /// Whatever happens: slots and budgets are kept, everything planned is there, and nothing is lost.
    #[test]
    fn a_plan_keeps_to_the_limits(acts in prop::collection::vec(act(), 1..120)) {
        let mut scheduler = Scheduler::new(LIMITS);
        let mut present: Vec<JobId> = Vec::new();
        let mut next = 0;
        for act in acts {
            match act {
                Act::Submit { tenant, priority, tokens, slots } => {
                    next += 1000;
                    let priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(priority)];
                    scheduler.submit(Entry { id: next, tenant, priority, tokens, slots });
                    present.push(next);
                }
                Act::Remove(at) if !present.is_empty() => {
                    let id = present.remove(at % present.len());
                    scheduler.remove(id);
                }
                Act::Remove(_) => {}
                Act::Step(available) => {
                    let needs = fresh(&scheduler);
                    let plan = scheduler.plan(available, |id| needs[&id]);
                    let tokens: usize = plan.prefill.iter().map(|part| part.tokens).sum();
                    let most = if plan.decode.is_empty() {
                        LIMITS.prefill_alone
                    } else {
                        LIMITS.prefill_beside_decoding
                    };
                    prop_assert!(tokens <= most);
                    let taken: usize = scheduler.running().iter().map(|job| job.entry.slots).sum();
                    prop_assert!(taken <= LIMITS.slots);
                    let runs = |id: JobId| scheduler.running().iter().any(|job| job.entry.id == id);
                    prop_assert!(plan.admit.iter().all(|id| runs(*id)));
                    prop_assert!(plan.preempt.iter().all(|id| !runs(*id)));
                    prop_assert!(plan.decode.iter().all(|id| runs(*id)));
                    for part in plan.prefill.iter().filter(|part| part.last) {
                        let slots = scheduler.running().iter().find(|job| job.entry.id == part.job);
                        let others: Vec<JobId> =
                            (1..slots.unwrap().entry.slots as u64).map(|more| part.job + more).collect();
                        scheduler.split(part.job, &others);
                        present.extend(others);
                    }
                    let count = scheduler.running().len() + scheduler.waiting().count();
                    prop_assert_eq!(count, present.len());
                }
            }
        }
    }

    /// Two tenants that always have something waiting are served alike, however long their prompts.
    #[test]
    fn tokens_are_shared_evenly(long in 1usize..300, short in 1usize..300) {
        let mut scheduler = Scheduler::new(Limits { slots: 2, ..LIMITS });
        let mut served = [0_usize; 2];
        let mut owner: HashMap<JobId, usize> = HashMap::new();
        let mut next = 0;
        for _ in 0..600 {
            for (tenant, tokens) in [(0, long), (1, short)] {
                while scheduler.waiting().filter(|entry| entry.tenant == tenant).count() < 3 {
                    next += 1;
                    owner.insert(next, tenant as usize);
                    scheduler.submit(entry(next, tenant, tokens));
                }
            }
            let plan = step(&mut scheduler);
            for part in &plan.prefill {
                served[owner[&part.job]] += part.tokens;
                if part.last {
                    scheduler.remove(part.job);
                }
            }
        }
        // Both at work all the time differ by what one request may be ahead.
        let apart = served[0].abs_diff(served[1]);
        let most = 2 * (long + short) + 2 * LIMITS.prefill_alone;
        prop_assert!(apart <= most, "{:?} tokens, {} apart", served, apart);
    }
}
