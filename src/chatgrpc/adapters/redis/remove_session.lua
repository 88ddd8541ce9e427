-- KEYS[1]: the user's sessions, a JSON object of device id to node id, or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.
-- Forgets the device's stream if the node still holds it; a key without a session does not stay.
local stored = redis.call('GET', KEYS[1])
if not stored then
    return 0
end
local sessions = cjson.decode(stored)
if sessions[ARGV[1]] ~= ARGV[2] then
    return 0
end
sessions[ARGV[1]] = nil
if next(sessions) == nil then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], cjson.encode(sessions))
end
return 1
