-- What was refused at one place, with its bytes: one row per stage that refused it.
SELECT
    topic, partition, offset, stage, code, reason, recorded_at, tenant, trace_id,
    letter_partition, letter_offset, base64Encode(key) AS key, base64Encode(value) AS value
FROM dead_letters_distinct
WHERE topic = {topic:String} AND partition = {partition:Int32} AND offset = {offset:Int64}
ORDER BY stage
