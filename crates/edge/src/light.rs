//! Light sleep as the edge sees it: instances that are there and do not answer, and the moment when they do again.
//!
//! A table keeps the endpoints of a service that sleeps lightly, behind a gate that holds every request. The controller
//! thaws them on a demand and says so by a short message; no table has to be made, sent and compiled for that.
//! `control.rs` hands both messages of the control link over to here.
//!
//! Why no request reaches a frozen instance, and none is forgotten:
//!
//! - *Opened* holds for one version of the table alone. A message that comes late, after a newer table, opens nothing,
//!   whatever that table says. A controller freezes under a table of its own that says "sleeping", so no message of an
//!   earlier wake can open the gate under it.
//! - Under one version a gate that was opened stays open, so a caller that counted itself in (`account.rs`), looked
//!   again and found the same version is right to go on.
//! - *Quiet* is told under the lock that tables are applied and gates are opened under: the version in force says
//!   "sleeping", it was not opened, and nobody is counted in. Whoever counts himself in after that finds a closed gate,
//!   and whoever did so under an older version is still counted until his last byte.
//! - A newer table that still says "sleeping", because it was made before the wake, closes the gate again. Whoever comes
//!   then is held and makes a demand as every first caller does; the controller, which knows that the instances run,
//!   says so again for that version.

use std::sync::PoisonError;
use std::time::Instant;

use tram_types::routing::State;
use uuid::Uuid;

use crate::control::Control;

impl Control {
    /// Opens the gate of a sleeping service under the table of this version, see the module's doc.
    pub(crate) fn thawed(&self, service_id: Uuid, version: u64, instances: &[Uuid]) -> bool {
        let _applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.shared.table.load();
        let Some(service) = table.service(service_id).filter(|_| table.version == version) else {
            return false;
        };
        let endpoints = &service.spec.endpoints;
        let answers = |id: &Uuid| instances.contains(id);
        if service.spec.state != State::Sleeping
            || endpoints.is_empty()
            || !endpoints.iter().all(|endpoint| answers(&endpoint.instance_id))
        {
            return false;
        }
        self.registry.woken(endpoints, Instant::now());
        service.live.open_under(version);
        service.live.queue.release(true);
        true
    }

    /// Whether nothing can be sent to the instances of a sleeping service, see the module's doc.
    pub(crate) fn is_quiet(&self, service_id: Uuid) -> bool {
        let _applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.shared.table.load();
        table.service(service_id).is_some_and(|service| {
            service.spec.state == State::Sleeping
                && !service.live.is_open_under(table.version)
                && service.live.in_flight() == 0
        })
    }
}
