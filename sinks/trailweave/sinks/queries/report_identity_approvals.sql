-- What an identity approved, or had approved, newest first.
SELECT
    recorded_at, approval_kind, effect, approver_subject AS by, agent_id AS agent, reason,
    call_id, trace_id
FROM events
WHERE event_type = 'approval_decided'
  AND (approver_subject = {identity:String} OR actor_subject = {identity:String}
       OR sponsor_subject = {identity:String})
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND recorded_at >= {since:DateTime64(3, 'UTC')} AND recorded_at < {until:DateTime64(3, 'UTC')}
ORDER BY recorded_at DESC, event_id
LIMIT 1 BY tenant, trace_id, event_id
LIMIT {limit:UInt32}
