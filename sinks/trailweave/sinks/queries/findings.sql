-- Findings in their latest state, newest first. '' asks for any.
SELECT
    finding_id, rule, state, severity, tenant, trace_id, subject, summary, expected, next_step,
    controls, agent_id, identity, sponsor, chain_state, detected_at
FROM findings_latest
WHERE ({tenant:String} = '' OR tenant = {tenant:String})
  AND ({trace:String} = '' OR trace_id = {trace:String})
  AND ({rule:String} = '' OR rule = {rule:String})
  AND ({agent:String} = '' OR agent_id = {agent:String})
  AND ({state:String} = '' OR state = {state:String})
  AND indexOf(['none', 'low', 'medium', 'high', 'critical'], severity) >= {severity_rank:UInt8}
  AND detected_at >= {since:DateTime64(3, 'UTC')}
  AND detected_at < {until:DateTime64(3, 'UTC')}
ORDER BY detected_at DESC, rule, finding_id
LIMIT {limit:UInt32}
