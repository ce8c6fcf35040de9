CREATE UNIQUE INDEX IF NOT EXISTS projects_organization_id_name ON projects (organization_id, name);
