-- Findings of some rules or about an identity, in their latest state, the worst and newest first.
-- '' and an empty list ask for any.
SELECT
    detected_at, severity, rule, state, tenant, trace_id, subject, summary, next_step, identity,
    sponsor, length(evidence) AS evidence
FROM findings_latest
WHERE (empty({rules:Array(String)}) OR has({rules:Array(String)}, rule))
  AND ({identity:String} = '' OR identity = {identity:String} OR sponsor = {identity:String})
  AND ({state:String} = '' OR state = {state:String})
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND detected_at >= {since:DateTime64(3, 'UTC')} AND detected_at < {until:DateTime64(3, 'UTC')}
ORDER BY
    indexOf(['low', 'medium', 'high', 'critical'], severity) DESC, detected_at DESC, finding_id
LIMIT {limit:UInt32}
