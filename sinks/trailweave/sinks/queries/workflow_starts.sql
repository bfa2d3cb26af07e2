-- The starts of some sessions, with the bytes that say who acts for whom.
SELECT tenant, trace_id, base64Encode(record) AS record
FROM events
WHERE event_type = 'session_started'
  AND tenant IN {tenants:Array(String)} AND trace_id IN {traces:Array(String)}
ORDER BY tenant, trace_id, occurred_at, event_id
LIMIT 1 BY tenant, trace_id, event_id
