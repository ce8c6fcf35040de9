CREATE UNIQUE INDEX IF NOT EXISTS organizations_name ON organizations (name);
