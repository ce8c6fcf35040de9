//! Numbers for the names of tenants: the scheduler compares them all the time, and names are strangers' text.

use std::collections::HashMap;
use std::sync::Arc;

use super::TenantId;

/// Names that have numbers before the table is begun anew.
const NAMES_MAX: usize = 4096;

/// The numbers given out.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashMap<Arc<str>, TenantId>,
    last: TenantId,
}

impl Names {
    /// The number of a name. Those of a table that was cleared do not come again, but after four thousand million others.
    pub(crate) fn number(&mut self, name: &Arc<str>) -> TenantId {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        if self.known.len() >= NAMES_MAX {
            self.known.clear();
        }
        self.last = self.last.wrapping_add(1);
        self.known.insert(name.clone(), self.last);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_many_names_fill_nothing() {
        let mut names = Names::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let first = names.number(&one);
        assert_eq!(names.number(&one), first);
        assert_ne!(names.number(&other), first);
        for stranger in 0..2 * NAMES_MAX {
            assert_ne!(names.number(&stranger.to_string().into()), first);
        }
        assert!(names.known.len() <= NAMES_MAX);
        assert_ne!(names.number(&one), first, "the table was begun anew");
    }
}
