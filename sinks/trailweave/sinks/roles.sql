-- Roles for ClickHouse servers; the embedded engine has none and refuses these statements.
--
-- Run as an administrator in the database of the tables, then GRANT the roles to users. Content
-- (prompts, arguments, results) lies in events.record and dead_letters.value only, so an analyst
-- sees everything but these; the views show them to nobody who may not read them in the tables.

CREATE ROLE IF NOT EXISTS trailweave_writer;
CREATE ROLE IF NOT EXISTS trailweave_analyst;
CREATE ROLE IF NOT EXISTS trailweave_investigator;
CREATE ROLE IF NOT EXISTS trailweave_auditor;

-- load, with create_tables = false: it inserts, and looks which places are there.
GRANT INSERT ON events TO trailweave_writer;
GRANT INSERT ON chains TO trailweave_writer;
GRANT INSERT ON findings TO trailweave_writer;
GRANT INSERT ON handles TO trailweave_writer;
GRANT INSERT ON heartbeats TO trailweave_writer;
GRANT INSERT ON dead_letters TO trailweave_writer;
GRANT SELECT(topic_id, partition, offset, ordinal) ON events TO trailweave_writer;
GRANT SELECT(topic_id, partition, offset, ordinal) ON chains TO trailweave_writer;
GRANT SELECT(topic_id, partition, offset, ordinal) ON findings TO trailweave_writer;
GRANT SELECT(topic_id, partition, offset, ordinal) ON handles TO trailweave_writer;
GRANT SELECT(topic_id, partition, offset, ordinal) ON heartbeats TO trailweave_writer;
GRANT SELECT(letter_topic_id, letter_partition, letter_offset, ordinal) ON dead_letters
    TO trailweave_writer;

-- Everything but content.
GRANT SELECT(${columns_without_content}) ON events TO trailweave_analyst;
GRANT SELECT(${letter_columns_without_content}) ON dead_letters TO trailweave_analyst;
GRANT SELECT ON chains TO trailweave_analyst;
GRANT SELECT ON findings TO trailweave_analyst;
GRANT SELECT ON handles TO trailweave_analyst;
GRANT SELECT ON heartbeats TO trailweave_analyst;
GRANT SELECT ON chains_latest TO trailweave_analyst;
GRANT SELECT ON findings_latest TO trailweave_analyst;

-- Content as well; every reveal is to be recorded by the viewer.
GRANT trailweave_analyst TO trailweave_investigator;
GRANT SELECT(record) ON events TO trailweave_investigator;
GRANT SELECT(key, value) ON dead_letters TO trailweave_investigator;
GRANT SELECT ON events_distinct TO trailweave_investigator;
GRANT SELECT ON dead_letters_distinct TO trailweave_investigator;

-- Verdicts and sums, no events.
GRANT SELECT ON chains TO trailweave_auditor;
GRANT SELECT ON findings TO trailweave_auditor;
GRANT SELECT ON heartbeats TO trailweave_auditor;
GRANT SELECT ON chains_latest TO trailweave_auditor;
GRANT SELECT ON findings_latest TO trailweave_auditor;
