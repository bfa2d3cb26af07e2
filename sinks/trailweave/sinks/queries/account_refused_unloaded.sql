-- Records of one event partition that are dead-lettered and in no row of events.
SELECT uniqExact(offset) AS records
FROM dead_letters
WHERE topic = {topic:String} AND partition = {partition:Int32}
  AND offset >= {start:Int64} AND offset < {end:Int64}
  AND offset NOT IN
  (
      SELECT offset FROM events
      WHERE topic_id = {topic_id:UUID} AND partition = {partition:Int32}
        AND offset >= {start:Int64} AND offset < {end:Int64}
  )
