CREATE INDEX IF NOT EXISTS volumes_service_id ON volumes (service_id);
