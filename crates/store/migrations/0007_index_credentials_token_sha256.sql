CREATE UNIQUE INDEX IF NOT EXISTS credentials_token_sha256 ON credentials (token_sha256);
