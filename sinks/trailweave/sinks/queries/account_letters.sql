-- Rows of the dead letters from one partition of their own topic.
SELECT
    count() AS row_count, uniqExact(letter_offset, ordinal) AS places,
    uniqExact(letter_offset) AS records
FROM dead_letters
WHERE letter_topic_id = {topic_id:UUID} AND letter_partition = {partition:Int32}
  AND letter_offset >= {start:Int64} AND letter_offset < {end:Int64}
