//! When services are called: what was counted, so that a restart does not forget it. Losing the last of it is no harm.

use serde_json::{Value, json};
use tram_types::{ServiceId, Timestamp};

use crate::{
    Store,
    error::Result,
    sql::{Sql, read},
};

/// How long a service was idle between calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallPattern {
    /// Which.
    pub service: ServiceId,
    /// When it was last called.
    pub called_at: Timestamp,
    /// Minutes of idleness, and how many calls came after so many.
    pub counts: Vec<(u16, u16)>,
}

impl Store {
    /// Every pattern that was kept; one that cannot be read is passed over.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn call_patterns(&self) -> Result<Vec<CallPattern>> {
        const DOING: &str = "reading when services are called";
        let rows = Sql::new("SELECT service_id, called_at, counts FROM call_patterns")
            .rows(&mut *self.database().read(DOING).await?, DOING)
            .await?;
        let pattern = |row| {
            let counts: Value = read(row, "counts", DOING)?;
            Ok(CallPattern {
                service: read(row, "service_id", DOING)?,
                called_at: read(row, "called_at", DOING)?,
                counts: serde_json::from_value(counts).unwrap_or_default(),
            })
        };
        rows.iter().map(pattern).collect()
    }

    /// Keeps patterns in place of those before, all or none. Those of services that are gone are passed over.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn keep_call_patterns(&self, patterns: &[CallPattern]) -> Result<()> {
        const DOING: &str = "keeping when services are called";
        let mut transaction = self.database().write(DOING).await?;
        for pattern in patterns {
            Sql::new(
                "INSERT INTO call_patterns (service_id, called_at, counts) \
                 SELECT id, CAST($1 AS BIGINT), $2 FROM services WHERE id = $3 \
                 ON CONFLICT (service_id) DO UPDATE SET called_at = EXCLUDED.called_at, counts = EXCLUDED.counts",
            )
            .bind(&pattern.called_at)
            .bind(&json!(pattern.counts))
            .bind(&pattern.service)
            .run(&mut transaction, DOING)
            .await?;
        }
        self.commit(transaction, DOING).await
    }
}
