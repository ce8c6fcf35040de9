//! Machines: where an instance goes, how long it takes there, and what it costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tram_types::{InstanceId, Timestamp};

use crate::simulator::{Rng, keepalive::START_MS};

/// How widely start times spread around their median: a p99 of twice the median, as container starts have.
const START_SIGMA: f64 = 0.3;
/// The part of a start before the program runs: file systems and namespaces.
const PREPARING: Duration = Duration::from_millis(3);
/// A program that is told to stop and has nothing to do.
pub(super) const STOPPING: Duration = Duration::from_millis(20);

/// What becomes of an instance next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its program runs; it is healthy after so long.
    Starts(Duration),
    /// Its checks pass.
    IsHealthy,
    /// It is over.
    Ends,
}

/// All machines of a region.
#[derive(Debug)]
pub(super) struct Site {
    machines: Vec<Machine>,
    /// Free memory in KiB and the machine, to find the emptiest one.
    free: BTreeSet<(u64, usize)>,
    places: BTreeMap<InstanceId, (usize, f64)>,
    rng: Rng,
    billed_until: Option<Timestamp>,
    used_mib: f64,
    pub(super) instance_seconds: f64,
    pub(super) mib_seconds: f64,
    pub(super) no_room: u64,
    pub(super) most_instances: usize,
    pub(super) fullest_mib: f64,
}

#[derive(Debug)]
struct Machine {
    capacity_mib: f64,
    used_mib: f64,
}

impl Machine {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a key to sort by: KiB of one machine, never negative"
    )]
    fn free_kib(&self) -> u64 {
        ((self.capacity_mib - self.used_mib) * 1024.0).max(0.0) as u64
    }
}

impl Site {
    pub(super) fn new(machines: usize, capacity_mib: f64, rng: Rng) -> Self {
        let machine = |_| Machine {
            capacity_mib,
            used_mib: 0.0,
        };
        let machines: Vec<Machine> = (0..machines).map(machine).collect();
        let free = machines
            .iter()
            .enumerate()
            .map(|(index, it)| (it.free_kib(), index))
            .collect();
        Self {
            machines,
            free,
            places: BTreeMap::new(),
            rng,
            billed_until: None,
            used_mib: 0.0,
            instance_seconds: 0.0,
            mib_seconds: 0.0,
            no_room: 0,
            most_instances: 0,
            fullest_mib: 0.0,
        }
    }

    pub(super) fn instances(&self) -> usize {
        self.places.len()
    }

    /// Counts what runs up to `now`.
    pub(super) fn bill(&mut self, now: Timestamp) {
        let since = self
            .billed_until
            .map_or(0.0, |until| now.since(until).as_secs_f64());
        self.instance_seconds += since * self.places.len() as f64;
        self.mib_seconds += since * self.used_mib;
        self.billed_until = Some(now.max(self.billed_until.unwrap_or(now)));
    }

    /// Gives an instance a place on the emptiest machine; `None`: none has room.
    pub(super) fn place(
        &mut self,
        instance: InstanceId,
        mib: f64,
        now: Timestamp,
    ) -> Result<Option<(Duration, Step)>, String> {
        if let Some((machine, _)) = self.places.get(&instance) {
            return Err(format!(
                "instance {instance} is on machine {machine} and was started again"
            ));
        }
        self.bill(now);
        let emptiest = self.free.last().map(|(_, index)| *index);
        let fits = emptiest.filter(|index| {
            let machine = &self.machines[*index];
            machine.used_mib + mib <= machine.capacity_mib
        });
        let Some(index) = fits else {
            self.no_room += 1;
            return Ok(None);
        };
        self.change(index, mib)?;
        self.places.insert(instance, (index, mib));
        self.most_instances = self.most_instances.max(self.places.len());
        self.fullest_mib = self.fullest_mib.max(self.machines[index].used_mib);
        let seconds = self.rng.log_normal(START_MS / 1000.0, START_SIGMA);
        let takes = Duration::try_from_secs_f64(seconds).unwrap_or(PREPARING);
        Ok(Some((PREPARING, Step::Starts(takes))))
    }

    /// Gives the place of an instance that is over to others.
    pub(super) fn release(&mut self, instance: InstanceId, now: Timestamp) -> Result<(), String> {
        self.bill(now);
        let (index, mib) = self
            .places
            .remove(&instance)
            .ok_or_else(|| format!("instance {instance} ended and was nowhere"))?;
        self.change(index, -mib)
    }

    fn change(&mut self, index: usize, mib: f64) -> Result<(), String> {
        /// Sums of fractions may be off by so much.
        const ROUNDING_MIB: f64 = 1e-3;
        let machine = &mut self.machines[index];
        self.free.remove(&(machine.free_kib(), index));
        machine.used_mib += mib;
        self.used_mib += mib;
        let (used, capacity) = (machine.used_mib, machine.capacity_mib);
        if used > capacity + ROUNDING_MIB || used < -ROUNDING_MIB {
            return Err(format!("machine {index} has {used} MiB of {capacity} in use"));
        }
        machine.used_mib = used.max(0.0);
        self.free.insert((machine.free_kib(), index));
        Ok(())
    }
}
