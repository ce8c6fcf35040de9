CREATE INDEX IF NOT EXISTS instances_service_id_created_at ON instances (service_id, created_at);
