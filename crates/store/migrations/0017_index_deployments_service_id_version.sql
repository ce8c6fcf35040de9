CREATE UNIQUE INDEX IF NOT EXISTS deployments_service_id_version ON deployments (service_id, version);
