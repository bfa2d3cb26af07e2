-- The latest verdict on one trace; no row while it is open.
SELECT
    * EXCEPT (topic_id, ordinal, root, findings_hash, evidence, findings, missing, producers),
    lower(hex(root)) AS root,
    lower(hex(findings_hash)) AS findings_hash,
    arrayMap(f -> (f.finding_id, f.rule, f.severity, f.subject), findings) AS findings,
    arrayMap(lack -> (lack.what, lack.subject, lack.detail), missing) AS missing,
    arrayMap(p -> (p.producer_id, p.epoch, p.events, p.first_seq, p.last_seq, p.gaps, p.expected),
             producers) AS producers,
    arrayMap(e -> (e.topic, e.partition, e.offset, e.event_id, lower(hex(e.leaf))), evidence)
        AS evidence
FROM chains_latest
WHERE tenant = {tenant:String} AND trace_id = {trace:String}
