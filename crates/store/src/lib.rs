//! What we keep, in SQLite or PostgreSQL. The only crate that knows SQL.
