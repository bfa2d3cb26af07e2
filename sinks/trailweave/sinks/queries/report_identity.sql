-- What an identity did, or others on its behalf, in the sessions of a period: in sums.
SELECT
    count() AS sessions,
    countIf(completeness = 'complete') AS complete,
    countIf(highest_severity IN ('high', 'critical')) AS severe,
    countIf(has(c.identities, {identity:String})) AS as_actor,
    countIf(has(c.sponsors, {identity:String})) AS as_sponsor,
    arraySort(groupUniqArrayArray(c.agents)) AS agents,
    arraySort(groupUniqArrayArray(arrayFilter(s -> s != {identity:String}, c.sponsors))) AS sponsors,
    sum(c.tool_calls) AS tool_calls,
    round(sum(c.cost_usd), 4) AS cost_usd,
    min(first_recorded_at) AS first_at,
    max(last_recorded_at) AS last_at
FROM chains_latest AS c
WHERE events > 0
  AND (has(c.identities, {identity:String}) OR has(c.sponsors, {identity:String}))
  AND ({tenant:String} = '' OR tenant = {tenant:String})
  AND last_recorded_at >= {since:DateTime64(3, 'UTC')}
  AND first_recorded_at < {until:DateTime64(3, 'UTC')}
