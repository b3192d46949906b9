-- Jobs and their moves. A job is a hash: m is what moves, k what stays, b the body, r the result,
-- p the progress, and h with its numbered parts the attempts that did not succeed.

local finished, cancels = {}, {}

-- A table that is made with all its fields does not grow field by field, which costs a third more.
local function decode(q, id, m, k)
  local state, token, attempt, crashes, priority, ready, seq, generation, deadline, submitted,
    started, ended, expires, value_until, worker, number, peer, cancel, code, unknown,
    unknown_since, result_ttl, failure_ttl, born = unpack_all(m)
  local task, lane, batch, max_attempts, mode, key, key_ttl, id_ttl, origin, submission =
    unpack_all(k)
  return {
    q = q, id = id, hash = q.job .. id, k = k, body = nil, state = state, token = token,
    attempt = attempt, crashes = crashes, priority = priority, ready = ready, seq = seq,
    generation = generation, deadline = deadline, submitted = submitted, started = started,
    ended = ended, expires = expires, value_until = value_until, worker = worker, number = number,
    peer = peer, cancel = cancel, code = code, unknown = unknown, unknown_since = unknown_since,
    result_ttl = result_ttl, failure_ttl = failure_ttl, born = born, task = task, lane = lane,
    batch = batch, max_attempts = max_attempts, mode = mode, key = key, key_ttl = key_ttl,
    id_ttl = id_ttl, origin = origin, submission = submission,
  }
end

local function load(q, id)
  local stored = call('HMGET', q.job .. id, 'm', 'k')
  return stored[1] and decode(q, id, stored[1], stored[2]) or nil
end

local function moving(j)
  return pack(
    j.state, j.token, j.attempt, j.crashes, j.priority, j.ready, j.seq, j.generation, j.deadline,
    j.submitted, j.started, j.ended, j.expires, j.value_until, j.worker, j.number, j.peer, j.cancel,
    j.code, j.unknown, j.unknown_since, j.result_ttl, j.failure_ttl, j.born)
end

local function save(j)
  call('HSET', j.hash, 'm', moving(j))
end

-- Whether it still waits although its deadline has passed.
local function is_overdue(j)
  return j.state <= QUEUED and j.deadline ~= nil and j.deadline <= now
end

local function is_expired(j)
  return j.expires ~= nil and j.expires <= now
end

local function in_time(j)
  return struct.pack('>d', j.seq) .. j.id
end

local function note(list, target, j)
  local refs = list[target]
  if not refs then
    refs = {}
    list[target] = refs
  end
  refs[#refs + 1] = j.q.name
  refs[#refs + 1] = j.id
end

local function tell_finished(j)
  if j.origin ~= '' then note(finished, j.origin, j) end
end

local function shift(q, j, state)
  local counts = tally(q, j.task)
  counts[j.state] = counts[j.state] - 1
  counts[state] = counts[state] + 1
  if j.batch then batch_shift(q, j, state) end
  j.state = state
end

-- Lets a job wait, for its time or for a worker.
local function wait(q, j, state)
  shift(q, j, state)
  q.waiting = q.waiting + 1
  q.changed = true
  if state == DELAYED then
    call('ZADD', q.delayed, j.ready, in_time(j))
    expect(q, j.ready)
  else
    enter(q, j)
  end
  if j.deadline then
    call('ZADD', q.overdue, j.deadline, j.id)
    expect(q, j.deadline)
  end
end

local function stop_waiting(q, j)
  q.waiting = q.waiting - 1
  q.changed = true
  if j.state == QUEUED then
    withdraw(q, j)
  else
    call('ZREM', q.delayed, in_time(j))
  end
  if j.deadline then call('ZREM', q.overdue, j.id) end
end

-- Queues up to so many delayed jobs that are due, the soonest first.
local function promote(q, most, each)
  if most <= 0 then return 0 end
  local due = call('ZRANGEBYSCORE', q.delayed, '-inf', now, 'LIMIT', 0, math.min(most, MANY))
  in_chunks('ZREM', q.delayed, due)
  for _, member in ipairs(due) do
    local j = load(q, member:sub(9))
    if j then
      shift(q, j, QUEUED)
      enter(q, j)
      save(j)
      if each then each(j) end
    end
  end
  return #due
end

-- What a worker holds is kept by claim: under i and its number the jobs that it was granted, by
-- queue and id, and under c how many of them it still has.
local function holdings(q, worker)
  return q.shared .. 'held:' .. worker
end

local function claim_fields(number)
  local digits = string.format('%.0f', number)
  return 'c' .. digits, 'i' .. digits
end

local function hold(q, worker, number, count, refs)
  local counted, listed = claim_fields(number)
  call('HSET', holdings(q, worker), counted, count, listed, pack(refs))
end

-- Takes the lease away and frees its places; the job must move on at once.
local function end_lease(q, j)
  q.ended[#q.ended + 1] = j.id
  local freed = q.freed[j.worker]
  if not freed then
    freed = {}
    q.freed[j.worker] = freed
  end
  freed[j.number] = (freed[j.number] or 0) + 1
  if j.deadline then call('ZREM', q.running_overdue, j.id) end
  leave_running(q, j)
  q.changed = true
end

local function settle_leases(q)
  if #q.ended == 0 then return end
  in_chunks('ZREM', q.leases, q.ended)
  for worker, freed in pairs(q.freed) do
    local held = holdings(q, worker)
    for number, count in pairs(freed) do
      local counted, listed = claim_fields(number)
      if call('HINCRBY', held, counted, -count) <= 0 then call('HDEL', held, counted, listed) end
    end
  end
  q.ended, q.freed = {}, {}
end

local function key_of(q, key)
  local stored = call('HGET', q.keys, key)
  if not stored then return nil end
  local holder = {}
  holder.id, holder.seq, holder.till, holder.state, holder.generation = unpack_all(stored)
  return holder
end

-- Returns who holds a unique key.
local function holder_of(q, key)
  local holder = key_of(q, key)
  if holder and holder.till and holder.till <= now then return nil end
  return holder
end

local function store_key(q, key, holder)
  call('HSET', q.keys, key,
    pack(holder.id, holder.seq, holder.till, holder.state, holder.generation))
end

local function hold_key(q, j)
  if not j.mode then return end
  local till = nil
  if j.mode == THROTTLE then
    till = now + j.key_ttl
    call('ZADD', q.throttles, till, j.key)
    expect(q, till)
  end
  store_key(q, j.key, {id = j.id, seq = j.seq, till = till, state = j.state,
    generation = j.generation})
end

-- Frees the unique key of a job; never a throttle's.
local function free_key(q, j)
  local holder = key_of(q, j.key)
  if holder and holder.seq == j.seq then call('HDEL', q.keys, j.key) end
end

local function expire_keys(q, most)
  local keys = call('ZRANGEBYSCORE', q.throttles, '-inf', now, 'LIMIT', 0, most)
  in_chunks('ZREM', q.throttles, keys)
  for _, key in ipairs(keys) do
    local holder = key_of(q, key)
    if holder and holder.till and holder.till <= now then call('HDEL', q.keys, key) end
  end
end

local function kept_for(j)
  if j.state == SUCCEEDED or j.state == CANCELLED then return j.result_ttl end
  return j.failure_ttl
end

-- Brings a job, whose lease has ended if it had one, to its end.
local function finish(q, j, state, code, has_result)
  if j.state ~= RUNNING then stop_waiting(q, j) end
  shift(q, j, state)
  j.ended, j.code = now, code
  count_end(tally(q, j.task), state)
  if j.batch then batch_ended(q, j) end
  local ttl = kept_for(j)
  j.value_until, j.expires = nil, nil
  if ttl then
    if state == SUCCEEDED or state == CANCELLED then j.value_until = now + ttl end
    local stays = math.max(ttl, j.id_ttl)
    j.expires = now + stays
    local expiring = q.expiring
    local at = now + math.max(has_result and ttl or stays, LINGER)
    expiring[#expiring + 1] = at
    expiring[#expiring + 1] = j.id
    expect(q, at)
  end
  if j.mode and j.mode ~= THROTTLE then free_key(q, j) end
  tell_finished(j)
end

local function removable_at(j)
  if not j.expires or not j.ended then return nil end
  return math.max(j.expires, j.ended + LINGER)
end

-- Enters when a final job next loses something: its result or itself.
local function schedule_expiry(q, j, has_result)
  local at = removable_at(j)
  if has_result then
    at = nil
    if j.value_until and j.ended then at = math.max(j.value_until, j.ended + LINGER) end
  end
  if at then
    call('ZADD', q.expiry, at, j.id)
    expect(q, at)
  else
    call('ZREM', q.expiry, j.id)
  end
end

-- Forgets a final job.
local function remove(q, j)
  call('DEL', j.hash)
  call('ZREM', q.all, j.id)
  call('ZREM', q.expiry, j.id)
  if j.batch then call('ZREM', q.base .. 'b:' .. j.batch, j.id) end
  local counts = tally(q, j.task)
  counts[j.state] = counts[j.state] - 1
  counts[REMOVED] = counts[REMOVED] + 1
  if j.mode == THROTTLE then
    local holder = key_of(q, j.key)
    if holder and holder.seq == j.seq then
      holder.state, holder.generation = j.state, j.generation
      store_key(q, j.key, holder)
    end
  end
  q.changed = true
  -- It may have been the last one.
  look_at(q, now)
end

-- Takes in a new job, which is about to enter its first state.
local function add(q, j)
  local counts = tally(q, j.task)
  counts[ACCEPTED] = counts[ACCEPTED] + 1
  counts[j.state] = counts[j.state] + 1
  q.listed[#q.listed + 1] = j.seq
  q.listed[#q.listed + 1] = j.id
  if j.batch then
    batch_enter(q, j)
    call('ZADD', q.base .. 'b:' .. j.batch, j.seq, j.id)
  end
  q.changed = true
end

local function remember(j, code, kind, message, traceback)
  local count, parts = history_size(j.hash)
  local entry = pack({j.attempt, code, kind, message, traceback, j.worker, j.started or now, now})
  keep_history(j.hash, count + 1, parts + 1, entry)
end
