CREATE INDEX IF NOT EXISTS instances_service_id_live ON instances (service_id, created_at, id) WHERE forgotten = 0;
