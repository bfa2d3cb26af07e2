-- What stands open against which session.
SELECT tenant, trace_id, rule, subject, severity FROM findings_latest WHERE state = 'open'
ORDER BY tenant, trace_id, rule, subject
