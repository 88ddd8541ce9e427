-- KEYS[1]: the user's sessions, a JSON object of device id to node ids, the last one written last; or absent.
-- ARGV[1]: device id.  ARGV[2]: node id.
-- Forgets that the node holds the device's stream; a key without a session does not stay, nor a device without a node.
-- What cannot be written again goes as a whole: entries that are lost are written again.
local stored = redis.pcall('GET', KEYS[1])
if type(stored) ~= 'string' then
    return 0
end
local is_json, sessions = pcall(cjson.decode, stored)
local node_ids = is_json and type(sessions) == 'table' and sessions[ARGV[1]]
if type(node_ids) ~= 'table' then
    return 0
end
for place, node_id in ipairs(node_ids) do
    if node_id == ARGV[2] then
        table.remove(node_ids, place)
        if #node_ids == 0 then
            sessions[ARGV[1]] = nil
        end
        if next(sessions) == nil then
            redis.call('DEL', KEYS[1])
        else
            local is_written, value = pcall(cjson.encode, sessions)
            if is_written then
                redis.call('SET', KEYS[1], value, 'KEEPTTL')
            else
                redis.call('DEL', KEYS[1])
            end
        end
        return 1
    end
end
return 0
