-- Every record of some sessions' events, repeats included, with its exact bytes.
SELECT
    tenant, trace_id, topic, partition, offset,
    toUnixTimestamp64Milli(recorded_at) AS recorded_ms, base64Encode(record) AS record
FROM events
WHERE tenant IN {tenants:Array(String)} AND trace_id IN {traces:Array(String)}
ORDER BY tenant, trace_id, topic_id, partition, offset
LIMIT 1 BY topic_id, partition, offset
