-- KEYS[1]: when the user was connected last, in milliseconds since the Unix epoch, or absent.
-- ARGV[1]: a time of the same kind.  ARGV[2]: for how many seconds it is kept.  ARGV[3]: the time now.
-- Notes the time unless a later one stands there: nodes tell theirs in no order. One that has not come yet gives way: it was
-- told by a node whose clock was ahead. What is no time is written over.
local stored = redis.pcall('GET', KEYS[1])
local known = type(stored) == 'string' and stored:match('^%d+$') and tonumber(stored)
if known and known >= tonumber(ARGV[1]) and known <= tonumber(ARGV[3]) then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
