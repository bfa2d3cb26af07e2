-- What the join has put into chains and fragments of one lane, up to one of its transactions.
SELECT
    count() AS sessions, sum(events) AS distinct_events, sum(duplicates) AS repeated,
    sum(dead_lettered) AS refused
FROM
(
    SELECT offset, events, duplicates, dead_lettered
    FROM chains
    WHERE topic_id = {topic_id:UUID} AND partition = {partition:Int32}
      AND w = 'join' AND kind != 'open' AND part <= {part:Int64}
    LIMIT 1 BY offset
)
