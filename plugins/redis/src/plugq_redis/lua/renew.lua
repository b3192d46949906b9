-- Extends leases, then releases those of the holder that it does not know of. ARGV[2]: seconds,
-- the leases, the holder's name and number if there is one, and the queue in a cluster.

local OK, LOST, CANCEL = 1, 2, 3

tell_time()
allow_writes()
local lease, refs, worker, number, name = unpack_all(ARGV[2])
local replies, listed, extended = {}, {}, {}
for index, ref in ipairs(refs) do
  local q = open(ref[1])
  local j = load(q, ref[2])
  if not j or j.token ~= ref[3] or j.state ~= RUNNING then
    replies[index] = LOST
  else
    local list = extended[ref[1]] or {}
    extended[ref[1]] = list
    list[#list + 1], list[#list + 2] = now + lease, j.id
    if ref[4] then call('HSET', j.hash, 'p', ref[4]) end
    replies[index] = j.cancel and CANCEL or OK
  end
  if worker then listed[pack(ref[1], ref[2], ref[3])] = true end
end
for name, list in pairs(extended) do
  in_chunks('ZADD', open(name).leases, list)
  expect(open(name), now + lease)
end
if worker then
  local shared = name and open(name).base or COMMON
  local unlisted = {}
  for _, field in ipairs(call('HKEYS', shared .. 'held:' .. worker)) do
    local claimed = field:sub(1, 1) == 'i' and tonumber(field:sub(2))
    if claimed and claimed <= number then
      for _, j in ipairs(held_of(shared, worker, claimed, load)) do
        if not listed[pack(j.q.name, j.id, j.token)] then unlisted[#unlisted + 1] = j end
      end
    end
  end
  for _, j in ipairs(unlisted) do
    local q = j.q
    j.attempt = j.attempt - 1
    end_lease(q, j)
    if j.cancel then
      finish(q, j, CANCELLED, '', false)
    else
      local counts = tally(q, j.task)
      counts[RELEASED] = counts[RELEASED] + 1
      wait(q, j, QUEUED)
    end
    save(j)
  end
end
return {close(''), pack(replies)}
