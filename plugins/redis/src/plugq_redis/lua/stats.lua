-- Returns the counters of queues. ARGV[2]: the queue in a cluster, else nothing.

tell_time()
allow_writes()
local function oldest_shown(q)
  local soonest, order = nil, '-inf'
  while true do
    -- One look for each priority that is there: its first member is its oldest.
    local first = call('ZRANGEBYSCORE', q.ready, order, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then return soonest end
    soonest = least(soonest, (struct.unpack('>d', first[1])))
    order = '(' .. first[2]
  end
end

local found = {}
local name = cmsgpack.unpack(ARGV[2])
for _, each in ipairs(name and {name} or all_queues()) do
  local q = known(each)
  if q then
    found[#found + 1] = {
      pack(q.name, q.paused, q.draining, oldest_shown(q)), q.settings or false,
      call('HGETALL', q.tallies_key),
    }
  end
end
keep_time()
return {pack(now), found}
