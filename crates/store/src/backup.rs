//! A copy of an SQLite database while it is in use. PostgreSQL has its own tools.

use std::path::Path;

use crate::{
    Store,
    database::Kind,
    error::{Error, Result},
    sql::Sql,
};

impl Store {
    /// Writes a consistent copy to a file that must not be there yet. Readers and the copy do not disturb each
    /// other; writers wait only for the pages they change at that moment. The key file is not part of it.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the file is there; [`Error::Setting`] for PostgreSQL; [`Error::Unavailable`].
    pub async fn backup_to(&self, path: &Path) -> Result<()> {
        const DOING: &str = "copying the database";
        let Kind::Sqlite { .. } = &self.database().kind else {
            return Err(Error::Setting {
                setting: "database",
                problem: "this is PostgreSQL; use `pg_dump` for a copy of it".to_owned(),
            });
        };
        if path.exists() {
            return Err(Error::conflict(
                "backup",
                path.display(),
                "the file is there already",
            ));
        }
        Sql::new("VACUUM INTO $1")
            .bind(&path.display().to_string())
            .run(&mut *self.database().writer(DOING).await?, DOING)
            .await?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(|error| Error::unavailable(DOING, error))
    }
}
