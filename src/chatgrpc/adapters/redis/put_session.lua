-- KEYS[1]: the user's sessions, a JSON object of device id to node ids, the last one written last; or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.  ARGV[3]: how many node ids a device may have.
-- Notes that the node holds the device's stream; returns the ids of the other nodes that say so too.
local stored = redis.call('GET', KEYS[1])
local sessions = stored and cjson.decode(stored) or {}
local others = {}
for _, node_id in ipairs(sessions[ARGV[1]] or {}) do
    if node_id ~= ARGV[2] then
        others[#others + 1] = node_id
    end
end
local first = math.max(1, #others + 2 - tonumber(ARGV[3]))
local node_ids = {unpack(others, first)}
node_ids[#node_ids + 1] = ARGV[2]
sessions[ARGV[1]] = node_ids
redis.call('SET', KEYS[1], cjson.encode(sessions))
return others
