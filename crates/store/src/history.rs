//! Events of objects and the audit feed: written once, read in order, pruned by age.

use sqlx::AnyConnection;
use tram_types::{ActivityId, EventId, OrganizationId, Timestamp};

use crate::{
    Store,
    error::Result,
    filter::{self, Listed, Order, Page},
    intent::{NewActivity, NewEvent},
    record::{Activity, Event},
    sql::Sql,
};

impl Store {
    /// Adds to the history of objects.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn add_events(&self, events: Vec<NewEvent>) -> Result<()> {
        const DOING: &str = "adding events";
        let mut transaction = self.database().write(DOING).await?;
        insert_events(&mut transaction, events, self.now(), DOING).await?;
        self.commit(transaction, DOING).await
    }

    /// Events, in the order asked for.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn list_events(
        &self,
        organization: OrganizationId,
        filter: &filter::Events,
        page: Page,
    ) -> Result<Listed<Event>> {
        let mut condition = Sql::default()
            .with("WHERE organization_id = ", &organization)
            .with(" AND object_kind = ", &filter.object_kind);
        condition.push_any_of("object_id", &filter.object_ids);
        condition.push_any_of("kind", &filter.kinds);
        let order = match filter.order {
            Order::Ascending => "occurred_at ASC, id ASC",
            Order::Descending => "occurred_at DESC, id DESC",
        };
        self.list(condition, order, page, "listing events").await
    }

    /// Adds to the audit feed.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn add_activity(&self, new: NewActivity) -> Result<Activity> {
        let activity = Activity {
            id: ActivityId::random(),
            organization_id: new.organization_id,
            actor: new.actor,
            verb: new.verb,
            object: new.object,
            metadata: new.metadata,
            created_at: self.now(),
        };
        self.write_one(Sql::insert(&activity), &[], "adding to the audit feed")
            .await?;
        Ok(activity)
    }

    /// The audit feed, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn list_activities(
        &self,
        organization: OrganizationId,
        filter: &filter::Activities,
        page: Page,
    ) -> Result<Listed<Activity>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        for (index, name) in filter.object_types.iter().enumerate() {
            condition.add(if index == 0 { " AND (" } else { " OR " });
            holds(&mut condition, "object", "type", name);
        }
        if !filter.object_types.is_empty() {
            condition.add(")");
        }
        if let Some(id) = &filter.actor_id {
            condition.add(" AND ");
            holds(&mut condition, "actor", "id", id);
        }
        self.list(
            condition,
            "created_at DESC, id DESC",
            page,
            "reading the audit feed",
        )
        .await
    }
}

/// A condition: the JSON object in `column` has this text in `member`. Both databases can look for a part of a text, and
/// a quotation mark inside another member is escaped, so that only the member itself is found.
fn holds(condition: &mut Sql, column: &str, member: &str, text: &str) {
    let part = format!("\"{member}\":{}", serde_json::Value::from(text));
    condition.push(&format!("REPLACE({column}, "), &part);
    condition.add(&format!(", '') <> {column}"));
}

/// Inserts events one microsecond apart, so that those of one batch keep their order.
pub(crate) async fn insert_events(
    connection: &mut AnyConnection,
    events: Vec<NewEvent>,
    now: Timestamp,
    doing: &'static str,
) -> Result<()> {
    for (new, after) in events.into_iter().zip(0_i64..) {
        let event = Event {
            id: EventId::random(),
            organization_id: new.organization_id,
            object_kind: new.object_kind,
            object_id: new.object_id,
            kind: new.kind,
            message: new.message,
            metadata: new.metadata,
            occurred_at: Timestamp::from_micros(now.as_micros().saturating_add(after)),
        };
        Sql::insert(&event).run(connection, doing).await?;
    }
    Ok(())
}
