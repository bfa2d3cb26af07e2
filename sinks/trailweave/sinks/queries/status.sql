-- How much is stored, and how new the newest of it is.
SELECT 'events' AS table, uniqExact(topic_id, partition, offset) AS records,
    if(count() = 0, NULL, max(recorded_at)) AS newest
FROM events
UNION ALL
SELECT 'chains', uniqExact(topic_id, partition, offset), if(count() = 0, NULL, max(recorded_at))
FROM chains
UNION ALL
SELECT 'findings', uniqExact(topic_id, partition, offset), if(count() = 0, NULL, max(recorded_at))
FROM findings
UNION ALL
SELECT 'dead_letters', uniqExact(topic, partition, offset, stage),
    if(count() = 0, NULL, max(letter_recorded_at))
FROM dead_letters
UNION ALL
SELECT 'heartbeats', uniqExact(topic_id, partition, offset),
    if(count() = 0, NULL, max(recorded_at))
FROM heartbeats
