-- Every session's latest verdict, in short; dead letters alone make no session.
SELECT tenant, trace_id, state, completeness FROM chains_latest WHERE events > 0
ORDER BY tenant, trace_id
