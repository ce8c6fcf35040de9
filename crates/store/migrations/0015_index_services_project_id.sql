CREATE INDEX IF NOT EXISTS services_project_id ON services (project_id);
