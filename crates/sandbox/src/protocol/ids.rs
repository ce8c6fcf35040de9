//! User and group ids of an instance, and what they are on this machine.

use serde::{Deserialize, Serialize};

use super::{InvalidSpec, LaunchSpec, User};

/// The first block: in the part of the ids that systemd's table of uses leaves free
/// (0x70000000 to 0x7FFFFFFF), so that no account, container manager or portable service of the machine has them.
const FIRST: u32 = 0x7000_0000;
/// Blocks there are: one for each instance of a full supervisor.
const BLOCKS: u32 = 4096;

/// A block of ids of this machine that an instance has for itself, in a user namespace of its own: id 0 inside is
/// `first` outside, which is nobody. Without one, root inside is the machine's root, held by everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub first: u32,
}

impl IdRange {
    /// Ids in a block: what every image assumes there to be.
    pub const LENGTH: u32 = 65_536;

    /// The block with this number; numbers beyond the last begin anew, so give neighbours neighbouring ones.
    pub const fn numbered(number: u32) -> Self {
        Self {
            first: FIRST + (number % BLOCKS) * Self::LENGTH,
        }
    }

    /// What an id of the instance is outside. The caller has validated that it is in the block.
    pub(crate) const fn outside(self, id: u32) -> u32 {
        self.first.saturating_add(id)
    }

    fn holds(id: u32) -> Result<(), InvalidSpec> {
        if id < Self::LENGTH {
            return Ok(());
        }
        Err(InvalidSpec(format!(
            "the user or group id {id} is too high: an instance has those from 0 to {}",
            Self::LENGTH - 1
        )))
    }

    /// Whether a user is one of an instance's.
    pub(crate) fn holds_user(user: &User) -> Result<(), InvalidSpec> {
        user.groups
            .iter()
            .chain([&user.uid, &user.gid])
            .try_for_each(|id| Self::holds(*id))
    }

    /// Whether everything in a spec can be had.
    pub(super) fn validate(self, spec: &LaunchSpec) -> Result<(), InvalidSpec> {
        if self.first < Self::LENGTH || self.first.checked_add(Self::LENGTH).is_none() {
            return Err(InvalidSpec(format!(
                "ids: a block cannot begin at {}",
                self.first
            )));
        }
        Self::holds_user(&spec.user)?;
        spec.files
            .iter()
            .flat_map(|file| [file.uid, file.gid])
            .try_for_each(Self::holds)
    }
}

/// What `id`, a number inside, is on this machine.
pub(crate) fn outside(ids: Option<IdRange>, id: u32) -> u32 {
    ids.map_or(id, |ids| ids.outside(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_stay_in_their_part() {
        let mut end = FIRST;
        for number in 0..BLOCKS {
            let block = IdRange::numbered(number);
            assert_eq!(block.first, end);
            end = block.first + IdRange::LENGTH;
        }
        assert_eq!(end, 0x8000_0000);
        assert_eq!(IdRange::numbered(BLOCKS + 7), IdRange::numbered(7));
    }
}
