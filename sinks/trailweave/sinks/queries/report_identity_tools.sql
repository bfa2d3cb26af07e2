-- The tools that ran for an identity.
SELECT
    tool,
    uniqExact(tenant, trace_id) AS sessions,
    uniqExact(event_id) AS calls,
    uniqExactIf(event_id, status = 'ok') AS ok,
    max(recorded_at) AS last_at
FROM events
WHERE event_type = 'tool_executed' AND status NOT IN ('denied', 'cancelled')
  AND (actor_subject = {identity:String} OR sponsor_subject = {identity:String})
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND recorded_at >= {since:DateTime64(3, 'UTC')} AND recorded_at < {until:DateTime64(3, 'UTC')}
GROUP BY tool
ORDER BY calls DESC, tool
LIMIT {limit:UInt32}
