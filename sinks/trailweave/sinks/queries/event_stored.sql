-- Whether an event is stored: one with its id, in its session.
SELECT count() AS records
FROM events
WHERE tenant = {tenant:String} AND trace_id = {trace:String} AND event_id = {event_id:String}
