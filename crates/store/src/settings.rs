//! The installation's own few facts: its id, and words other rooms keep by name.

use sqlx::AnyConnection;
use uuid::Uuid;

use crate::{Store, error::Result, sql::Sql};

/// The setting that holds the installation's id.
const INSTALLATION_ID: &str = "installation_id";

impl Store {
    /// What identifies this installation, made when first asked for.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn installation_id(&self) -> Result<Uuid> {
        const DOING: &str = "reading the installation's id";
        let mut transaction = self.database().write(DOING).await?;
        Sql::new("INSERT INTO settings (name, content) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(&INSTALLATION_ID.to_owned())
            .bind(&Uuid::new_v4())
            .run(&mut transaction, DOING)
            .await?;
        let id = value::<Uuid>(&mut transaction, INSTALLATION_ID, DOING).await?;
        self.commit(transaction, DOING).await?;
        Ok(id.unwrap_or_default())
    }

    /// What is kept under a name.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        const DOING: &str = "reading a setting";
        value(&mut *self.database().read(DOING).await?, name, DOING).await
    }

    /// Keeps something under a name.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn set_setting(&self, name: &str, content: &str) -> Result<()> {
        let sql = Sql::new(
            "INSERT INTO settings (name, content) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET content = EXCLUDED.content",
        )
        .bind(&name.to_owned())
        .bind(&content.to_owned());
        self.write_one(sql, &[], "keeping a setting").await.map(drop)
    }
}

/// What is kept under a name, read inside a transaction.
pub(crate) async fn value<T: crate::column::Column>(
    connection: &mut AnyConnection,
    name: &str,
    doing: &'static str,
) -> Result<Option<T>> {
    Sql::new("SELECT content AS value FROM settings WHERE name = $1")
        .bind(&name.to_owned())
        .value(connection, doing)
        .await
}
