CREATE INDEX IF NOT EXISTS token_usages_hour_at ON token_usages (hour_at);
