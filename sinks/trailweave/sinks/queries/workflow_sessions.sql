-- The sessions of one workflow, and those that began one of them or were begun by one, in order.
WITH
    own AS
    (
        SELECT tenant, trace_id, parent_trace_id FROM chains_latest
        WHERE events > 0 AND workflow_id = {workflow:String}
          AND ({tenant:String} = '' OR tenant = {tenant:String})
    )
SELECT
    tenant, trace_id, parent_trace_id, workflow_id, state, completeness, highest_severity, agents,
    identities, sponsors, purpose, environment, status, outcome,
    arrayMap(f -> f.rule, c.findings) AS findings, first_recorded_at, last_recorded_at
FROM chains_latest AS c
WHERE events > 0
  AND ((tenant, trace_id) IN (SELECT tenant, trace_id FROM own)
       OR (tenant, trace_id) IN (SELECT tenant, parent_trace_id FROM own)
       OR (tenant, parent_trace_id) IN (SELECT tenant, trace_id FROM own))
ORDER BY tenant, first_recorded_at, trace_id
LIMIT {limit:UInt32}
