-- Rows of one table from one partition; `row_count` above `records` is residue that reads collapse.
SELECT count() AS row_count, uniqExact(offset, ordinal) AS places, uniqExact(offset) AS records
FROM {table:Identifier}
WHERE topic_id = {topic_id:UUID} AND partition = {partition:Int32}
  AND offset >= {start:Int64} AND offset < {end:Int64}
