-- Sessions with events of the last hours and no verdict yet, or events after the last one.
SELECT count() AS sessions, sum(held) AS events
FROM
(
    SELECT tenant, trace_id, max(recorded_at) AS newest, uniqExact(event_id) AS held
    FROM events
    WHERE recorded_at >= now64(3) - INTERVAL {hours:UInt32} HOUR
    GROUP BY tenant, trace_id
) AS seen
LEFT ANTI JOIN
(
    SELECT DISTINCT tenant, trace_id FROM chains WHERE kind != 'open'
) AS judged USING (tenant, trace_id)
