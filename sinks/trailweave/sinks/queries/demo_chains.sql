-- Every session's latest verdict, in short.
SELECT tenant, trace_id, state, completeness FROM chains_latest ORDER BY tenant, trace_id
