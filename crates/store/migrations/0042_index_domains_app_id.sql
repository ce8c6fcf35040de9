CREATE INDEX IF NOT EXISTS domains_app_id ON domains (app_id);
