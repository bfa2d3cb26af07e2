-- The open findings of some sessions, as whoever takes one back has to repeat it.
SELECT
    finding_id, trace_id, tenant, rule, state, severity, subject, summary, expected, next_step,
    controls,
    arrayMap(e -> (e.topic, e.partition, e.offset, e.event_id, lower(hex(e.leaf))), evidence)
        AS evidence,
    chain_state, agent_id, identity, sponsor
FROM findings_latest
WHERE state = 'open'
  AND tenant IN {tenants:Array(String)} AND trace_id IN {traces:Array(String)}
