CREATE INDEX IF NOT EXISTS secrets_key_id ON secrets (key_id);
