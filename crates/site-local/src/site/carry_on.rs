//! A running instance goes on as one of another deployment: its network policy changes under it.
//!
//! The one design choice to know: the kernel first, then the record. A record that says more than the kernel knows would
//! be believed; one that says less has the order come again, and a restart puts the kernel back to what it says.

use tram_site::{Continuation, Error};
use tram_types::InstanceId;

use super::Shared;
use super::entries::{self, Live};

impl Shared {
    /// Applies the policy of another deployment to an instance that is up.
    pub(super) async fn continue_as(&self, id: InstanceId, continuation: &Continuation) -> Result<(), Error> {
        let (before, slot) = {
            let entries = self.lock();
            let entry = entries.get(&id).ok_or(Error::NoSuchInstance(id))?;
            let slot = entry.slot().ok_or(Error::NoSuchInstance(id))?;
            (entry.record.spec.clone(), slot)
        };
        let mut after = before.clone();
        after.deployment_id = continuation.deployment_id;
        after.regional_deployment_id = continuation.regional_deployment_id;
        after.image.deployment = continuation.deployment_id;
        after.egress_allow.clone_from(&continuation.egress_allow);
        let address = self.network.address(slot);
        let member = entries::member(&after, address)?;
        let known = entries::names(&after, self.network.gateway(), self.network.has_v6())?;
        self.images
            .inherit(before.image.deployment, continuation.deployment_id)?;
        // Before the firewall, so that no name is answered by the old list once that is closed.
        self.directory.set_outside(address, known.outside, known.networks);
        self.network
            .replace(member, entries::keeps_names(&before, &after))
            .await
            .map_err(|error| Error::unavailable("cannot change the network policy of an instance", error))?;
        {
            let mut entries = self.lock();
            let entry = entries.get_mut(&id).ok_or(Error::NoSuchInstance(id))?;
            if !matches!(entry.live, Live::Up(_)) || entry.slot() != Some(slot) {
                return Err(Error::NoSuchInstance(id));
            }
            let spec = &mut entry.record.spec;
            spec.deployment_id = after.deployment_id;
            spec.regional_deployment_id = after.regional_deployment_id;
            spec.image.deployment = after.image.deployment;
            spec.egress_allow = after.egress_allow;
            self.store
                .save(&entry.record)
                .map_err(|error| Error::unavailable("cannot write the order down", error))?;
        }
        self.announce(id);
        let line = "the network policy was changed while this instance runs".to_owned();
        let note = entries::note(continuation.egress_allow.as_deref(), self.network.has_v6());
        self.write_lines(id, std::iter::once(line).chain(note).collect())
            .await;
        Ok(())
    }
}
