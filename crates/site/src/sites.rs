//! Which site serves which region.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Site, sessions::Sessions};

/// The sites of an installation, by the region they serve. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sites {
    by_region: Arc<BTreeMap<String, Arc<dyn Site>>>,
    sessions: Sessions,
}

impl Sites {
    /// Sites by region id.
    #[must_use]
    pub fn new(by_region: BTreeMap<String, Arc<dyn Site>>) -> Self {
        Self {
            by_region: Arc::new(by_region),
            sessions: Sessions::default(),
        }
    }

    /// One site that serves one region: a single machine.
    #[must_use]
    pub fn single(region: impl Into<String>, site: Arc<dyn Site>) -> Self {
        Self::new(BTreeMap::from([(region.into(), site)]))
    }

    /// The site that serves `region`.
    #[must_use]
    pub fn for_region(&self, region: &str) -> Option<&Arc<dyn Site>> {
        self.by_region.get(region)
    }

    /// The sessions that are open in instances.
    #[must_use]
    pub const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Every region with its site.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Site>)> {
        self.by_region
            .iter()
            .map(|(region, site)| (region.as_str(), site))
    }
}
