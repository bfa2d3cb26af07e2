-- What stands open against one trace, worst first.
SELECT
    finding_id, rule, state, severity, subject, summary, expected, next_step, controls, agent_id,
    identity, sponsor, detected_at, rules_version,
    arrayMap(e -> (e.topic, e.partition, e.offset, e.event_id, lower(hex(e.leaf))), evidence)
        AS evidence
FROM findings_latest
WHERE tenant = {tenant:String} AND trace_id = {trace:String} AND state = 'open'
ORDER BY indexOf(['critical', 'high', 'medium', 'low'], severity), rule, subject
