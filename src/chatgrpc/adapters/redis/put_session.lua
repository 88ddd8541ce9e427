-- KEYS[1]: the user's sessions, a JSON object of device id to node ids, the last one written last; or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.  ARGV[3]: how many node ids a device may have.
-- ARGV[4]: for how many seconds the key is kept.  ARGV[5]: how many bytes it may have.
-- Notes that the node holds the device's stream; returns the ids of the other nodes that say so too.
-- What stands there and is no such object is written over: entries that are lost are written again. Of an object what is no node
-- id is left out: cjson reads numbers that it cannot write.
local stored = redis.pcall('GET', KEYS[1])
local sessions = {}
if type(stored) == 'string' and #stored <= tonumber(ARGV[5]) then
    local is_json, decoded = pcall(cjson.decode, stored)
    for device_id, node_ids in pairs(is_json and type(decoded) == 'table' and decoded or {}) do
        if type(device_id) == 'string' and type(node_ids) == 'table' then
            local known = {}
            for _, node_id in ipairs(node_ids) do
                if type(node_id) == 'string' then
                    known[#known + 1] = node_id
                end
            end
            sessions[device_id] = #known > 0 and known or nil
        end
    end
end
local others = {}
for _, node_id in ipairs(sessions[ARGV[1]] or {}) do
    if node_id ~= ARGV[2] then
        others[#others + 1] = node_id
    end
end
local node_ids = {}
for place = math.max(1, #others + 2 - tonumber(ARGV[3])), #others do
    node_ids[#node_ids + 1] = others[place]
end
node_ids[#node_ids + 1] = ARGV[2]
sessions[ARGV[1]] = node_ids
redis.call('SET', KEYS[1], cjson.encode(sessions), 'EX', ARGV[4])
return others
