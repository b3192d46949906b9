-- Hands out sequences, after one that is taken already. ARGV[2]: how many, and that one; returns the
-- first.

tell_time()
local count, taken = unpack_all(ARGV[2])
local key = COMMON .. 'sequence'
-- The clock keeps them rising where this node has lost what queues on other nodes still have.
local last = math.max(tonumber(call('GET', key) or 0), taken, math.floor(now * 1000000) - 1)
call('SET', key, string.format('%.0f', last + count))
return pack(last + 1)
