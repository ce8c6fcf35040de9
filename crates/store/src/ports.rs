//! Public TCP ports: each is given to one port of one service, for as long as the service lives.

use std::ops::RangeInclusive;

use sqlx::AnyConnection;
use tram_types::{OrganizationId, ServiceId, Timestamp};

use crate::{
    Store,
    error::{Error, Result},
    record::ProxyPort,
    sql::Sql,
};

/// The advisory lock of PostgreSQL under which ports are given: two services must not choose the same free one.
const PORTS_LOCK: i64 = 0x7472_616d_0002;

/// Service ports that want public ones, and what there is to give.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) ports: Vec<u16>,
    pub(crate) range: RangeInclusive<u16>,
    pub(crate) is_postgres: bool,
}

impl Wanted {
    /// These, and the ones a definition names in `proxy_ports`: a deployment that resumes or is composed wants its
    /// ports as much as a new one.
    pub(crate) fn and_of(mut self, definition: &serde_json::Value) -> Self {
        let named = definition
            .get("proxy_ports")
            .and_then(serde_json::Value::as_array);
        for port in named.into_iter().flatten() {
            let port = port.get("port").and_then(serde_json::Value::as_u64);
            if let Some(port) = port.and_then(|port| u16::try_from(port).ok())
                && !self.ports.contains(&port)
            {
                self.ports.push(port);
            }
        }
        self
    }
}

impl Store {
    pub(crate) fn proxy_ports_of(&self, ports: &[u16]) -> Wanted {
        Wanted {
            ports: ports.to_vec(),
            range: self.proxy_port_range(),
            is_postgres: self.database().is_postgres(),
        }
    }

    /// The public ports of these services.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn proxy_ports(
        &self,
        organization: OrganizationId,
        services: &[ServiceId],
    ) -> Result<Vec<ProxyPort>> {
        const DOING: &str = "reading public ports";
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::select::<ProxyPort>("").with("WHERE organization_id = ", &organization);
        sql.push_any_of("service_id", services);
        sql.add(" ORDER BY service_id, port");
        sql.all(&mut *self.database().read(DOING).await?, DOING).await
    }
}

/// Every public port of a service.
pub(crate) async fn of_service(
    connection: &mut AnyConnection,
    service: ServiceId,
    doing: &'static str,
) -> Result<Vec<ProxyPort>> {
    Sql::select::<ProxyPort>("")
        .with("WHERE service_id = ", &service)
        .with(" ORDER BY port LIMIT ", &crate::filter::PAGE_ITEMS_MAX)
        .all(connection, doing)
        .await
}

/// Gives a public port to each service port that has none. Ports that are no longer wanted stay with the service:
/// an older deployment may still serve them, and the next one may want them back.
pub(crate) async fn ensure(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    service: ServiceId,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Vec<ProxyPort>> {
    const DOING: &str = "giving public ports to a service";
    if wanted.ports.is_empty() {
        return of_service(connection, service, DOING).await;
    }
    if wanted.is_postgres {
        Sql::new("SELECT pg_advisory_xact_lock($1)")
            .bind(&PORTS_LOCK)
            .run(connection, DOING)
            .await?;
    }
    let mut given = of_service(connection, service, DOING).await?;
    for port in &wanted.ports {
        if given.iter().any(|one| one.port == *port) {
            continue;
        }
        let record = ProxyPort {
            public_port: free_port(connection, &wanted.range).await?,
            organization_id: organization,
            service_id: service,
            port: *port,
            created_at: now,
        };
        Sql::insert(&record).run(connection, DOING).await?;
        given.push(record);
    }
    given.sort_by_key(|one| one.port);
    Ok(given)
}

/// A free port, looked for from a random place: cheap while the range is mostly free, and a port that was just given
/// back is unlikely to reach another service's clients at once.
async fn free_port(connection: &mut AnyConnection, range: &RangeInclusive<u16>) -> Result<u16> {
    let exhausted = || Error::Exhausted {
        what: "public TCP port",
        hint: format!(
            "all of {} to {} are given to services; delete services that use TCP proxy ports or widen the range",
            range.start(),
            range.end()
        ),
    };
    if range.is_empty() {
        return Err(exhausted());
    }
    let from = rand::random_range(range.clone());
    for (first, last) in [(from, *range.end()), (*range.start(), from)] {
        if let Some(port) = first_free(connection, first, last).await? {
            return Ok(port);
        }
    }
    Err(exhausted())
}

async fn first_free(connection: &mut AnyConnection, first: u16, last: u16) -> Result<Option<u16>> {
    const DOING: &str = "looking for a free public port";
    let taken = Sql::new("SELECT COUNT(*) AS value FROM proxy_ports WHERE public_port = $1")
        .bind(&first)
        .value::<u64>(connection, DOING)
        .await?;
    if taken == Some(0) {
        return Ok(Some(first));
    }
    Sql::new(
        "SELECT taken.public_port + 1 AS value FROM proxy_ports taken \
         WHERE taken.public_port >= $1 AND taken.public_port < $2 AND NOT EXISTS \
         (SELECT 1 FROM proxy_ports after WHERE after.public_port = taken.public_port + 1) \
         ORDER BY taken.public_port LIMIT 1",
    )
    .bind(&first)
    .bind(&last)
    .value::<u16>(connection, DOING)
    .await
}
