-- KEYS[1]: the user's sessions, a JSON object of device id to node id, or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.
-- Notes that the node holds the device's stream now, whoever held it before.
local stored = redis.call('GET', KEYS[1])
local sessions = stored and cjson.decode(stored) or {}
sessions[ARGV[1]] = ARGV[2]
redis.call('SET', KEYS[1], cjson.encode(sessions))
return redis.status_reply('OK')
