-- Per rule: sessions that were judged, those in which it could not be evaluated, those with a finding.
SELECT
    rule,
    count() AS judged,
    countIf(has(not_evaluable, rule)) AS not_evaluable,
    countIf(has(arrayMap(f -> f.rule, found), rule)) AS with_findings
FROM
(
    SELECT not_evaluable, findings AS found
    FROM chains_latest
    WHERE events > 0 AND state = 'closed'
      AND ({tenant:String} = '' OR tenant = {tenant:String})
      AND last_recorded_at >= {since:DateTime64(3, 'UTC')}
      AND first_recorded_at < {until:DateTime64(3, 'UTC')}
)
ARRAY JOIN {rules:Array(String)} AS rule
GROUP BY rule
ORDER BY rule
