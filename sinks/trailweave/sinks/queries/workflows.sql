-- Workflows: sessions that serve one task, those active last first. '' asks for any.
SELECT
    c.tenant AS tenant,
    c.workflow_id AS workflow_id,
    count() AS sessions,
    arraySort(groupUniqArrayArray(c.agents)) AS agents,
    arraySort(groupUniqArrayArray(c.sponsors)) AS sponsors,
    countIf(c.completeness != 'complete') AS not_complete,
    sum(length(c.findings)) AS findings,
    argMax(c.highest_severity,
           indexOf(['none', 'low', 'medium', 'high', 'critical'], c.highest_severity))
        AS highest_severity,
    min(c.first_recorded_at) AS first_at,
    max(c.last_recorded_at) AS last_at
FROM chains_latest AS c
WHERE c.events > 0 AND c.workflow_id != ''
  AND ({tenant:String} = '' OR c.tenant = {tenant:String})
  AND c.last_recorded_at >= {since:DateTime64(3, 'UTC')}
  AND c.first_recorded_at < {until:DateTime64(3, 'UTC')}
GROUP BY c.tenant, c.workflow_id
ORDER BY last_at DESC, tenant, workflow_id
LIMIT {limit:UInt32}
