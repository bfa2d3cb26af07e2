-- What has come through so far: a demo waits until this is all that was sent.
SELECT
    (SELECT uniqExact(topic_id, partition, offset) FROM events) AS event_rows,
    (SELECT uniqExact(tenant, trace_id, event_id, record_hash) FROM events) AS events_stored,
    (SELECT uniqExact(topic, partition, offset) FROM dead_letters) AS dead_letters,
    (SELECT uniqExact(topic, partition, offset) FROM dead_letters
     WHERE (topic, partition, offset) NOT IN (SELECT topic, partition, offset FROM events))
        AS dead_letters_not_stored,
    (SELECT uniqExactIf((topic, partition, offset), stage = 'join' AND trace_id = '')
     FROM dead_letters) AS dead_letters_alone,
    (SELECT uniqExact(tenant, trace_id) FROM chains WHERE kind != 'open' AND events > 0)
        AS sessions,
    (SELECT sum(events + duplicates + dead_lettered) FROM chains
     WHERE w = 'join' AND kind != 'open') AS events_judged,
    (SELECT sum(duplicates) FROM chains WHERE w = 'join' AND kind != 'open') AS duplicates,
    (SELECT uniqExact(topic_id, partition, offset) FROM findings WHERE chain_state != 'open')
        AS finding_rows,
    (SELECT sum(length(findings)) FROM chains WHERE w = 'join' AND kind != 'open')
        AS findings_judged
