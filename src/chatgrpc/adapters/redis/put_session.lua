-- KEYS[1]: the user's sessions, a JSON object of device id to node id, or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.
-- Notes that the node holds the device's stream now; returns the id of the node that held it before, or nothing.
local stored = redis.call('GET', KEYS[1])
local sessions = stored and cjson.decode(stored) or {}
local before = sessions[ARGV[1]]
sessions[ARGV[1]] = ARGV[2]
redis.call('SET', KEYS[1], cjson.encode(sessions))
return before or false
