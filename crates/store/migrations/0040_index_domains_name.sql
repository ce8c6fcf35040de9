CREATE UNIQUE INDEX IF NOT EXISTS domains_name ON domains (name);
