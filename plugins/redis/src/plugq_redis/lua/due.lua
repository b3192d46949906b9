-- Returns how many jobs of a queue a sweep would deal with, by kind. ARGV[2]: the queue, and the grace
-- of deadlines.

tell_time()
local name, grace = unpack_all(ARGV[2])
local q = open(name)
return pack({
  call('ZCOUNT', q.leases, '-inf', now), call('ZCOUNT', q.running_overdue, '-inf', now - grace),
  call('ZCOUNT', q.overdue, '-inf', now), call('ZCOUNT', q.delayed, '-inf', now),
  call('ZCOUNT', q.expiry, '-inf', now),
})
