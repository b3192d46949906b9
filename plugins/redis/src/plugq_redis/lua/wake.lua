-- Wakes other peers in place of some that have gone. ARGV[2]: the queue, and how many.

tell_time()
allow_writes()
local name, count = unpack_all(ARGV[2])
local q = open(name)
wake(q, math.min(count, slots(q, ready_count(q))), '')
return {close('')}
