-- The tenants that have something stored of a trace.
SELECT DISTINCT tenant FROM
(
    SELECT tenant FROM events WHERE trace_id = {trace:String}
    UNION ALL
    SELECT tenant FROM chains WHERE trace_id = {trace:String}
)
ORDER BY tenant
