-- Sessions by their latest verdict, newest first. '' asks for any. What consists of dead letters
-- only is no session: its trace id may be as wrong as the rest of it; `dead-letters` lists it.
SELECT
    tenant, trace_id, state, close_reason, completeness, highest_severity, agents, identities,
    sponsors, credentials, tools, models, events, duplicates, dead_lettered, tool_calls,
    input_tokens, output_tokens, cost_usd, environment, purpose, data_class, status, outcome,
    started_at, ended_at, first_recorded_at, last_recorded_at, judged_at, reassessment_pending,
    arrayMap(f -> f.rule, c.findings) AS findings,
    arrayMap(lack -> (lack.what, lack.subject, lack.detail), c.missing) AS missing
FROM chains_latest AS c
WHERE events > 0
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND ({agent:String} = '' OR has(agents, {agent:String}))
  AND ({identity:String} = '' OR has(identities, {identity:String})
       OR has(sponsors, {identity:String}))
  AND ({credential:String} = '' OR has(credentials, {credential:String}))
  AND ({tool:String} = '' OR has(tools, {tool:String}))
  AND ({finding:String} = '' OR has(arrayMap(f -> f.rule, c.findings), {finding:String}))
  AND ({word:String} = '' OR positionCaseInsensitiveUTF8(
        arrayStringConcat(arrayConcat([trace_id, outcome, status], agents, identities, sponsors,
                                      credentials, tools, models), '\n'), {word:String}) > 0)
  AND ({completeness:String} = '' OR completeness = {completeness:String})
  AND ({state:String} = '' OR state = {state:String})
  AND indexOf(['none', 'low', 'medium', 'high', 'critical'], highest_severity)
      >= {severity_rank:UInt8}
  AND last_recorded_at >= {since:DateTime64(3, 'UTC')}
  AND first_recorded_at < {until:DateTime64(3, 'UTC')}
ORDER BY last_recorded_at DESC, tenant, trace_id
LIMIT {limit:UInt32}
