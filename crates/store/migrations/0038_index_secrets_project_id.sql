CREATE INDEX IF NOT EXISTS secrets_project_id ON secrets (project_id);
