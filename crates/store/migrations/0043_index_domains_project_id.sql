CREATE INDEX IF NOT EXISTS domains_project_id ON domains (project_id);
