-- Issues and uses of an identity's credentials, newest first, with the bytes that hold their scopes.
SELECT
    event_type, credential_id, credential_kind, scope_exercised, recorded_at, expires_at,
    base64Encode(record) AS record
FROM events
WHERE event_type IN ('credential_issued', 'credential_used')
  AND (actor_subject = {identity:String} OR sponsor_subject = {identity:String})
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND recorded_at >= {since:DateTime64(3, 'UTC')} AND recorded_at < {until:DateTime64(3, 'UTC')}
ORDER BY recorded_at DESC, event_id
LIMIT 1 BY tenant, trace_id, event_id
LIMIT {limit:UInt32}
