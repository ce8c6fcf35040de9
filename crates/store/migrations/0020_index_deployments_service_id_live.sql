CREATE INDEX IF NOT EXISTS deployments_service_id_live ON deployments (service_id, version) WHERE status NOT IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED');
