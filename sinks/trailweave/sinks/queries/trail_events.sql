-- The events of one trace, repeats left out, with their exact bytes; and the columns that tell the
-- story after the bytes have expired.
SELECT
    topic, partition, offset, recorded_at, event_type, base64Encode(record) AS record_base64,
    event_id, trace_id, tenant, producer_id, producer_epoch, trace_seq,
    toUnixTimestamp64Micro(occurred_at) AS occurred_at_micros, span_id, parent_span_id, agent_id,
    actor_kind, actor_subject, sponsor_subject, call_id, tool, server, provider, model,
    model_version, credential_id, scope_exercised, policy_id, mode, effect, approval_id,
    approval_kind, guardrail, verdict, status, outcome, error, reason, action, operation, resource,
    store, trust, source_uri, system, principal
FROM events
WHERE tenant = {tenant:String} AND trace_id = {trace:String}
ORDER BY occurred_at, event_id, recorded_at, topic_id, partition, offset
LIMIT 1 BY event_id, record_hash
