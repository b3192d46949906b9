-- Hands out sequences, after one that is taken already. ARGV[2]: how many, and that one; returns the
-- first.

local count, taken = unpack_all(ARGV[2])
local key = COMMON .. 'sequence'
local last = math.max(tonumber(call('GET', key) or 0), taken)
call('SET', key, last + count)
return pack(last + 1)
