-- Does what time makes due. ARGV[2]: the most of each kind, the most crashes, whether leases may
-- be ended, the grace of deadlines, and in a cluster the queue, empty for what belongs to none, and
-- how many of each kind are its share.

local LAPSE, DEADLINE, DUE_NOW, REMOVE = 1, 2, 3, 4

tell_time()
allow_writes()
local limit, max_crashes, end_leases, grace, name, shares = unpack_all(ARGV[2])
limit = math.max(0, math.min(limit, MANY))
local changes = {}
shares = shares or {limit, limit, limit, limit, limit}
local left = {lapsed = shares[1], ending = shares[2], overdue = shares[3], due = shares[4],
  expiry = shares[5]}

local function changed(j, event, state, code)
  local at = #changes
  changes[at + 1], changes[at + 2], changes[at + 3], changes[at + 4] = j.q.name, j.id, j.task, event
  changes[at + 5], changes[at + 6], changes[at + 7] = state, j.seq, j.attempt
  changes[at + 8], changes[at + 9], changes[at + 10] = code, j.lane or false, j.batch or false
end

local function due(key, kind, till, most)
  if most <= 0 then return {} end
  local ids = call('ZRANGEBYSCORE', key, '-inf', till, 'LIMIT', 0, most)
  left[kind] = left[kind] - #ids
  return ids
end

local function crash(q, j)
  j.crashes = j.crashes + 1
  local state = QUEUED
  if j.cancel then
    state = CANCELLED
  elseif j.crashes >= max_crashes or j.attempt >= j.max_attempts then
    state = FAILED
  end
  remember(j, 'crashed', 'Crashed',
    "the lease of worker '" .. j.worker .. "' ended without a settlement", '')
  local counts = tally(q, j.task)
  counts[LEASE_ENDED] = counts[LEASE_ENDED] + 1
  end_lease(q, j)
  if state == QUEUED then
    wait(q, j, state)
  else
    finish(q, j, state, state == FAILED and 'crashed' or '', false)
  end
  save(j)
  changed(j, LAPSE, j.state, 'crashed')
end

local function end_running(q, j)
  remember(j, 'deadline', 'DeadlineExceeded',
    "worker '" .. j.worker .. "' still ran it when the deadline had passed", '')
  local state = j.cancel and CANCELLED or FAILED
  end_lease(q, j)
  finish(q, j, state, state == FAILED and 'deadline' or '', false)
  save(j)
  changed(j, DEADLINE, state, j.code)
end

local function retain(q)
  for _, id in ipairs(due(q.expiry, 'expiry', now, left.expiry)) do
    local j = load(q, id)
    if not j then
      call('ZREM', q.expiry, id)
    else
      local at = removable_at(j)
      if at and at <= now then
        remove(q, j)
        changed(j, REMOVE, 0, j.code)
      else
        call('HDEL', j.hash, 'r')
        schedule_expiry(q, j, false)
      end
    end
  end
end

local function sweep(q)
  if end_leases then
    for _, id in ipairs(due(q.leases, 'lapsed', now, left.lapsed)) do
      local j = load(q, id)
      if j and j.state == RUNNING then crash(q, j) else call('ZREM', q.leases, id) end
    end
    settle_leases(q)
    for _, id in ipairs(due(q.running_overdue, 'ending', now - grace, left.ending)) do
      local j = load(q, id)
      if j and j.state == RUNNING then end_running(q, j) else call('ZREM', q.running_overdue, id) end
    end
    settle_leases(q)
  end
  for _, id in ipairs(due(q.overdue, 'overdue', now, left.overdue)) do
    local j = load(q, id)
    if j and j.state <= QUEUED then
      finish(q, j, FAILED, 'deadline', false)
      j.ended = j.deadline
      save(j)
      changed(j, DEADLINE, FAILED, j.code)
    else
      call('ZREM', q.overdue, id)
    end
  end
  left.due = left.due - promote(q, left.due, function(j) changed(j, DUE_NOW, QUEUED, j.code) end)
  if #q.expiring > 0 then
    in_chunks('ZADD', q.expiry, q.expiring)
    q.expiring = {}
  end
  retain(q)
  expire_keys(q, limit)
end

local soonest, let, states, turning = nil, 0, 0, false

local function first(key)
  return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end

-- Returns the queues to look at, as many as go into a command, and whether something may be due in
-- more.
local function queues_due()
  if name then return name ~= '' and {name} or {}, false end
  local found = call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, CHUNK)
  local count, there = #found, {}
  for _, each in ipairs(found) do there[each] = true end
  for _, each in ipairs(call('ZRANGEBYSCORE', LOOKS, '-inf', now, 'LIMIT', 0, CHUNK)) do
    if not there[each] then found[#found + 1] = each end
  end
  return found, count == CHUNK
end

local function is_unused(q)
  return not q.settings and not q.paused and not q.draining and q.token < now * 1000000
    and call('ZCARD', q.all) == 0
end

-- Keeps when the next sweep has to look at a queue, whatever that one is asked for.
local function keep_times(q, due_at)
  local look = first(q.base .. 'limits:over')
  if q.turned < q.turn then look = now end
  if q.by_queue or q.by_lane then look = least(least(look, q.parked), first(q.parked_lanes)) end
  if slots(q, ready_count(q)) > 0 and call('ZCARD', q.idle) > 0 then
    -- Those who are woken for them may have gone.
    look = now
  end
  q.swept = true
  put_down(q, 'due', DUE, due_at)
  put_down(q, 'look', LOOKS, look)
  if not due_at and not look and is_unused(q) then call('ZADD', UNUSED, now + DAY, q.name) end
end

-- Forgets a queue that has not been used for a day. Its tokens go on rising with the clock.
local function forget(q)
  call('DEL', q.base .. 'queue', q.tallies_key)
  call('ZREMRANGEBYSCORE', q.idle, '-inf', now - DAY)
  call('SREM', QUEUES, q.name)
  q.exists = false
end

local function look_after(q)
  sweep(q)
  turning = turn_lanes(q, CHUNK) or turning
  if q.by_queue or q.by_lane then let = let + let_in(q, limit - let, now) end
  states = states + forget_states(q, limit - states)
  local at = nil
  for _, key in ipairs({q.delayed, q.overdue, q.expiry, q.throttles}) do
    at = least(at, first(key))
  end
  local lapse, ending = first(q.leases), first(q.running_overdue)
  soonest = least(soonest, at)
  if end_leases then
    soonest = least(soonest, lapse)
    soonest = least(soonest, ending and ending + grace)
  end
  if CLUSTER then
    forget_batches(q.base, limit)
    call('ZREMRANGEBYSCORE', q.base .. 'claims', '-inf', now)
    call('ZREMRANGEBYSCORE', q.base .. 'marks', '-inf', now)
  else
    keep_times(q, least(least(at, lapse), ending))
  end
end

local names, more = queues_due()
for _, each in ipairs(names) do
  local q = known(each)
  if q then look_after(q) end
end
if not name then
  local unused = call('ZRANGEBYSCORE', UNUSED, '-inf', now, 'LIMIT', 0, CHUNK)
  in_chunks('ZREM', UNUSED, unused)
  for _, each in ipairs(unused) do
    local q = known(each)
    if q and not q.due and not q.look and is_unused(q) then forget(q) end
  end
  -- Of the other queues it is known already.
  local later = call('ZRANGEBYSCORE', DUE, '(' .. string.format('%.17g', now), '+inf',
    'WITHSCORES', 'LIMIT', 0, 1)
  soonest = least(soonest, tonumber(later[2]))
end
if not CLUSTER or name == '' then
  forget_batches(COMMON, limit)
  local claims = COMMON .. 'claims'
  in_chunks('ZREM', claims, call('ZRANGEBYSCORE', claims, '-inf', now, 'LIMIT', 0, limit))
  expire_registers(limit)
  soonest = least(soonest, first(COMMON .. 'registers:over'))
end
local next_in = nil
if soonest then next_in = math.max(0, soonest - now) end
if let >= limit or states >= limit or turning or (more and end_leases) then next_in = 0 end
return {close('', true), pack(next_in), pack(changes)}
