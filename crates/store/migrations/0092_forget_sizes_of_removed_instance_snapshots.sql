DELETE FROM instance_snapshot_sizes WHERE id NOT IN (
    SELECT id FROM instance_snapshots WHERE status <> 'INSTANCE_SNAPSHOT_STATUS_DELETED'
);
