CREATE INDEX IF NOT EXISTS instances_app_id ON instances (app_id);
