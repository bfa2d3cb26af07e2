-- The next sessions of a period behind a place in the order of (tenant, trace_id): their parts taken
-- together, and what their latest verdict was. One with a part that is newer than the period's end
-- is left for later: more may come.
SELECT
    tenant, trace_id,
    any(partition) AS lane,
    uniqExact(partition) AS lanes,
    maxIf(part, w = 'join') AS newest_part,
    if(countIf(w = 'reassess') > 0, maxIf(part, w = 'reassess'), -1) AS covered_part,
    countIf(kind = 'fragment') > 0 AS fragmented,
    sumIf(events + duplicates, w = 'join') AS records,
    sumIf(dead_lettered, w = 'join') AS dead_lettered,
    argMax(rules_version, (w = 'reassess', kind = 'chain', offset)) AS rules_version,
    argMax(rules_config_hash, (w = 'reassess', kind = 'chain', offset)) AS rules_config_hash
FROM
(
    SELECT *
    FROM chains
    WHERE kind != 'open' AND (tenant, trace_id) IN
    (
        SELECT tenant, trace_id
        FROM chains
        WHERE kind != 'open'
          AND (tenant, trace_id) > ({after_tenant:String}, {after_trace:String})
          AND ({tenant:String} = '' OR tenant = {tenant:String})
          AND ({trace:String} = '' OR trace_id = {trace:String})
          AND last_recorded_at >= {since:DateTime64(3, 'UTC')}
        GROUP BY tenant, trace_id
        HAVING max(last_recorded_at) < {until:DateTime64(3, 'UTC')}
        ORDER BY tenant, trace_id
        LIMIT {limit:UInt32}
    )
    LIMIT 1 BY topic_id, partition, offset
)
GROUP BY tenant, trace_id
ORDER BY tenant, trace_id
