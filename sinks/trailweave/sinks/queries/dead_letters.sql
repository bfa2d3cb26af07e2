-- Refused records, newest first, without their bytes. '' asks for any.
SELECT
    topic, partition, offset, stage, code, reason, recorded_at, tenant, trace_id,
    length(value) AS bytes, letter_partition, letter_offset
FROM dead_letters_distinct
WHERE ({topic:String} = '' OR topic = {topic:String})
  AND ({stage:String} = '' OR stage = {stage:String})
  AND ({code:String} = '' OR code = {code:String})
ORDER BY letter_recorded_at DESC, topic, partition, offset, stage
LIMIT {limit:UInt32}
