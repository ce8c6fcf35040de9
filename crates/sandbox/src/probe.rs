//! What this machine offers for isolation: facts for `tram doctor`.
