CREATE UNIQUE INDEX IF NOT EXISTS services_app_id_name ON services (app_id, name);
