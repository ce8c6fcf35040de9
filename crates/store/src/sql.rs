//! One SQL text for both databases, with `$n` parameters, and what its failure means.
//!
//! Text is made of literals of this crate and of parameters, never of what somebody sent.

use sqlx::{
    Any, AnyConnection,
    any::{AnyArguments, AnyRow},
    query::Query,
};
use tram_types::Timestamp;

use crate::{
    column::{Cell, Column},
    error::{Error, Result},
    record::Record,
};

/// A statement and its parameters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sql {
    text: String,
    cells: Vec<Cell>,
    /// Columns that are written, to tell which value was taken already.
    written: Vec<(&'static str, Cell)>,
}

impl Sql {
    /// A statement; write `$1`, `$2` … in it and [`Sql::bind`] as many values.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// `SELECT` every column of a record; the text goes on with `WHERE`.
    pub(crate) fn select<R: Record>(rest: &str) -> Self {
        Self::new(format!("SELECT {} FROM {} {rest}", R::select_list(), R::TABLE))
    }

    /// `INSERT` a record.
    pub(crate) fn insert<R: Record>(record: &R) -> Self {
        let mut sql = Self::new(format!(
            "INSERT INTO {} ({}) VALUES (",
            R::TABLE,
            R::COLUMNS.join(", ")
        ));
        let cells = record.cells();
        for (index, cell) in cells.iter().enumerate() {
            sql.add(if index == 0 { "" } else { ", " });
            sql.add_cell(cell.clone());
        }
        sql.add(")");
        sql.written = R::COLUMNS.iter().copied().zip(cells).collect();
        sql
    }

    /// One more column of an `INSERT`, which the record does not show.
    pub(crate) fn also<T: Column>(mut self, column: &'static str, value: &T) -> Self {
        self.text = self
            .text
            .replacen(") VALUES (", &format!(", {column}) VALUES ("), 1);
        self.text.pop();
        self.push(", ", value);
        self.add(")");
        self
    }

    /// `UPDATE` columns of a record's table and its `updated_at`; the text goes on with `WHERE`.
    pub(crate) fn update<R: Record>(cells: Vec<(&'static str, Cell)>, now: Timestamp) -> Self {
        let mut sql = Self::new(format!("UPDATE {} SET updated_at = ", R::TABLE));
        sql.add_cell(now.to_cell());
        for (column, cell) in &cells {
            sql.add(", ");
            sql.add(column);
            sql.add(" = ");
            sql.add_cell(cell.clone());
        }
        sql.written = cells;
        sql
    }

    /// The next parameter of the text.
    pub(crate) fn bind<T: Column>(mut self, value: &T) -> Self {
        self.cells.push(value.to_cell());
        self
    }

    /// More text.
    pub(crate) fn add(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn add_cell(&mut self, cell: Cell) {
        self.cells.push(cell);
        self.text.push('$');
        self.text.push_str(&self.cells.len().to_string());
    }

    /// More text, ending in a parameter.
    pub(crate) fn with<T: Column>(mut self, text: &str, value: &T) -> Self {
        self.push(text, value);
        self
    }

    /// More text, ending in a parameter.
    pub(crate) fn with_cell(mut self, text: &str, cell: Cell) -> Self {
        self.add(text);
        self.add_cell(cell);
        self
    }

    /// More text.
    pub(crate) fn with_text(mut self, text: &str) -> Self {
        self.add(text);
        self
    }

    /// More text, ending in a parameter.
    pub(crate) fn push<T: Column>(&mut self, text: &str, value: &T) {
        self.add(text);
        self.add_cell(value.to_cell());
    }

    /// More text, ending in a parameter, when there is a value.
    pub(crate) fn push_some<T: Column>(&mut self, text: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.push(text, value);
        }
    }

    /// ` AND column IN (…)`, when there are values.
    pub(crate) fn push_any_of<T: Column>(&mut self, column: &str, values: &[T]) {
        if values.is_empty() {
            return;
        }
        self.add(" AND ");
        self.add(column);
        self.add(" IN (");
        for (index, value) in values.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " }, value);
        }
        self.add(")");
    }

    /// The same condition behind another text: both halves of a list.
    pub(crate) fn behind(&self, text: &str) -> Self {
        Self {
            text: format!("{text}{}", self.text),
            cells: self.cells.clone(),
            written: Vec::new(),
        }
    }

    fn query(&self) -> Query<'static, Any, AnyArguments> {
        let mut query = sqlx::query::<Any>(sqlx::AssertSqlSafe(self.text.clone()));
        for cell in &self.cells {
            query = match cell.clone() {
                Cell::Text(text) => query.bind(text),
                Cell::Integer(number) => query.bind(number),
            };
        }
        query
    }

    /// Runs it and says how many rows it touched.
    pub(crate) async fn run(&self, connection: &mut AnyConnection, doing: &'static str) -> Result<u64> {
        match self.query().execute(connection).await {
            Ok(done) => Ok(done.rows_affected()),
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    /// The rows.
    pub(crate) async fn rows(
        &self,
        connection: &mut AnyConnection,
        doing: &'static str,
    ) -> Result<Vec<AnyRow>> {
        self.query()
            .fetch_all(connection)
            .await
            .map_err(|error| self.failed(doing, error))
    }

    /// The rows as records.
    pub(crate) async fn all<R: Record>(
        &self,
        connection: &mut AnyConnection,
        doing: &'static str,
    ) -> Result<Vec<R>> {
        let rows = self.rows(connection, doing).await?;
        rows.iter()
            .map(|row| R::from_row(row).map_err(|error| Error::unavailable(doing, error)))
            .collect()
    }

    /// The first row as a record, if there is one.
    pub(crate) async fn optional<R: Record>(
        &self,
        connection: &mut AnyConnection,
        doing: &'static str,
    ) -> Result<Option<R>> {
        let row = self
            .query()
            .fetch_optional(connection)
            .await
            .map_err(|error| self.failed(doing, error))?;
        row.map(|row| R::from_row(&row).map_err(|error| Error::unavailable(doing, error)))
            .transpose()
    }

    /// The first column of every row, which the text calls `value`.
    pub(crate) async fn values<T: Column>(
        &self,
        connection: &mut AnyConnection,
        doing: &'static str,
    ) -> Result<Vec<T>> {
        let rows = self.rows(connection, doing).await?;
        rows.iter()
            .map(|row| crate::column::read(row, "value").map_err(|error| Error::unavailable(doing, error)))
            .collect()
    }

    /// The column `value` of the first row, if there is one.
    pub(crate) async fn value<T: Column>(
        &self,
        connection: &mut AnyConnection,
        doing: &'static str,
    ) -> Result<Option<T>> {
        Ok(self.values(connection, doing).await?.into_iter().next())
    }

    fn failed(&self, doing: &'static str, error: sqlx::Error) -> Error {
        if let sqlx::Error::Database(database) = &error
            && database.is_unique_violation()
        {
            let told = database.constraint().unwrap_or_else(|| database.message());
            if let Some(rule) = UNIQUE
                .iter()
                .find(|rule| told.contains(rule.index) || told.ends_with(rule.columns))
            {
                let value = self.written.iter().find(|(column, _)| *column == rule.field);
                return Error::AlreadyExists {
                    object: rule.object,
                    field: rule.field,
                    value: match value {
                        Some((_, Cell::Text(Some(text)))) => text.clone(),
                        Some((_, Cell::Integer(Some(number)))) => number.to_string(),
                        _ => String::new(),
                    },
                };
            }
        }
        if let sqlx::Error::Database(database) = &error
            && database.is_foreign_key_violation()
        {
            return Error::Conflict {
                object: "object",
                id: String::new(),
                reason: "it names something that is gone, or something still names it".to_owned(),
            };
        }
        Error::unavailable(doing, error)
    }
}

/// Reads a column that the text names, of a row that is no record.
pub(crate) fn read<T: Column>(row: &AnyRow, name: &'static str, doing: &'static str) -> Result<T> {
    crate::column::read(row, name).map_err(|error| Error::unavailable(doing, error))
}

/// What must be unique, as PostgreSQL (the index) and SQLite (the columns) name it when it is not.
struct Unique {
    index: &'static str,
    columns: &'static str,
    object: &'static str,
    field: &'static str,
}

const UNIQUE: &[Unique] = &[
    Unique {
        index: "organizations_name",
        columns: "organizations.name",
        object: "organization",
        field: "name",
    },
    Unique {
        index: "projects_organization_id_name",
        columns: "projects.organization_id, projects.name",
        object: "project",
        field: "name",
    },
    Unique {
        index: "credentials_token_sha256",
        columns: "credentials.token_sha256",
        object: "credential",
        field: "token_sha256",
    },
    Unique {
        index: "apps_organization_id_name",
        columns: "apps.organization_id, apps.name",
        object: "app",
        field: "name",
    },
    Unique {
        index: "services_app_id_name",
        columns: "services.app_id, services.name",
        object: "service",
        field: "name",
    },
    Unique {
        index: "regional_deployments_deployment_id_region",
        columns: "regional_deployments.deployment_id, regional_deployments.region",
        object: "regional deployment",
        field: "region",
    },
    Unique {
        index: "domains_name",
        columns: "domains.name",
        object: "domain",
        field: "name",
    },
    Unique {
        index: "secrets_scope_name",
        columns: "index 'secrets_scope_name'",
        object: "secret",
        field: "name",
    },
    Unique {
        index: "volumes_scope_name",
        columns: "index 'volumes_scope_name'",
        object: "volume",
        field: "name",
    },
    Unique {
        index: "snapshots_scope_name",
        columns: "index 'snapshots_scope_name'",
        object: "snapshot",
        field: "name",
    },
    Unique {
        index: "service_pools_organization_id_name",
        columns: "service_pools.organization_id, service_pools.name",
        object: "service pool",
        field: "name",
    },
    Unique {
        index: "proxy_ports_pkey",
        columns: "proxy_ports.public_port",
        object: "proxy port",
        field: "public_port",
    },
    Unique {
        index: "_pkey",
        columns: ".id",
        object: "object",
        field: "id",
    },
];
