-- The newest totals of each start of each producer.
SELECT
    tenant, producer_id, producer_epoch,
    argMax(recorded, heartbeat_seq) AS recorded, argMax(delivered, heartbeat_seq) AS delivered,
    argMax(buffered, heartbeat_seq) AS buffered, argMax(spooled, heartbeat_seq) AS spooled,
    argMax(failed, heartbeat_seq) AS failed, argMax(final, heartbeat_seq) AS final,
    argMax(interval_s, heartbeat_seq) AS interval_s, max(recorded_at) AS last_recorded_at
FROM heartbeats
GROUP BY tenant, producer_id, producer_epoch
ORDER BY tenant, producer_id, producer_epoch
