//! What fuzz targets may reach of the inside: a compiled table, and the place where a request would go.
//!
//! Only there with the feature `fuzzing`; nothing in the product calls it.

use std::sync::Arc;

use tram_types::routing::RoutingTable;
use uuid::Uuid;

use crate::account::Signals;
use crate::route;
use crate::table::{Registry, Table, TableError};

/// A compiled table.
#[derive(Debug)]
pub struct Router(Table);

/// Where a request would go.
#[derive(Debug)]
pub struct Found {
    /// The host as it was looked up.
    pub host: String,
    /// The service of the route.
    pub service_id: Uuid,
    /// Whether a routing key led there.
    pub by_key: bool,
    /// Where in the path the rest begins.
    pub rest_at: usize,
    /// What the instance would be asked for, when it is not what came.
    pub target: Option<String>,
}

impl Router {
    /// Compiles a table as the edge does.
    ///
    /// # Errors
    /// As a controller would hear them.
    pub fn compile(table: RoutingTable) -> Result<Self, TableError> {
        let registry = Registry::new(Arc::new(Signals::new()), 1);
        Table::compile(table, &Table::empty(), &registry).map(Self)
    }

    /// Routes a request as the edge does.
    #[must_use]
    pub fn find(&self, authority: &str, path: &str, key: Option<&[u8]>) -> Option<Found> {
        let host = route::canonical(authority);
        let matched = route::find(&self.0, &host, path, key).ok()?;
        Some(Found {
            service_id: matched.route.service.spec.id,
            by_key: matched.by_key,
            rest_at: matched.rest_at,
            target: route::stripped(path, None, matched.rest_at),
            host: host.into_owned(),
        })
    }
}
