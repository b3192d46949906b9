-- Does what time makes due. ARGV[2]: the most of each kind, the most crashes, whether leases may
-- be ended, the grace of deadlines, and in a cluster the queue, empty for what belongs to none, and
-- how many of each kind are its share.

local LAPSE, DEADLINE, DUE, REMOVE = 1, 2, 3, 4

tell_time()
allow_writes()
local limit, max_crashes, end_leases, grace, name, shares = unpack_all(ARGV[2])
limit = math.max(0, math.min(limit, MANY))
local names = not name and all_queues() or name ~= '' and {name} or {}
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
  left.due = left.due - promote(q, left.due, function(j) changed(j, DUE, QUEUED, j.code) end)
  if #q.expiring > 0 then
    in_chunks('ZADD', q.expiry, q.expiring)
    q.expiring = {}
  end
  retain(q)
  expire_keys(q, limit)
end

local soonest = nil

local function first(key, later)
  local at = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if at then soonest = least(soonest, tonumber(at) + (later or 0)) end
end

local let, states = 0, 0
for _, each in ipairs(names) do
  local q = known(each)
  if q then
    sweep(q)
    if q.by_queue or q.by_lane then let = let + let_in(q, limit - let, now) end
    states = states + forget_states(q, limit - states)
    for _, key in ipairs({q.delayed, q.overdue, q.expiry, q.throttles}) do first(key) end
    if end_leases then
      first(q.leases)
      first(q.running_overdue, grace)
    end
    if CLUSTER then
      forget_batches(q.base, limit)
      call('ZREMRANGEBYSCORE', q.base .. 'claims', '-inf', now)
      call('ZREMRANGEBYSCORE', q.base .. 'marks', '-inf', now)
    end
  end
end
if not CLUSTER or name == '' then
  forget_batches(COMMON, limit)
  local claims = COMMON .. 'claims'
  in_chunks('ZREM', claims, call('ZRANGEBYSCORE', claims, '-inf', now, 'LIMIT', 0, limit))
  expire_registers(limit)
  first(COMMON .. 'registers:over')
end
local next_in = nil
if soonest then next_in = math.max(0, soonest - now) end
if let >= limit or states >= limit then next_in = 0 end
return {close('', true), pack(next_in), pack(changes)}
