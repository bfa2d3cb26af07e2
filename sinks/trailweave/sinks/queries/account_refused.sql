-- Records of one event partition that a stage refused; `alone` are those of no session.
SELECT uniqExact(offset) AS records, uniqExactIf(offset, trace_id = '') AS alone
FROM dead_letters
WHERE topic = {topic:String} AND partition = {partition:Int32} AND stage = {stage:String}
  AND offset >= {start:Int64} AND offset < {end:Int64}
