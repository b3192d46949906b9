-- The grant of leases, by itself or in the step of a settlement.

-- What a lease is made of: the queue, the id, what moves, what stays, and the body.
local function lease_of(j, m, k, body)
  return {j.q.name, j.id, m, k, body}
end

local function load_whole(q, id)
  local stored = call('HMGET', q.job .. id, 'm', 'k', 'b')
  if not stored[1] then return nil end
  local j = decode(q, id, stored[1], stored[2])
  j.body = stored[3]
  return j
end

-- Takes a job that is past its deadline out of the order; the sweep ends it.
local function pass_over(q, j, place)
  if j.lane then withdraw(q, j) else hide(q, place) end
end

-- Whether a lane was not up to date, and is now.
local function is_new(q, name)
  if q.turned == q.turn then return false end
  local _, turned = lane_of(q, name)
  return turned
end

-- Walks the first jobs of the ready order, which stand until the walk is over. Those past their
-- deadline leave it. The visitor returns whether it wants no more. Returns whether it saw all that
-- it could.
local function walk(q, most, visit, read)
  settle_order(q)
  local seen, passed, places = 0, 0, {}
  local bound = 2 * most + 100
  local index, fetched = 1, 0
  local much = math.max(1, math.min(most, CHUNK))
  local size = much
  while true do
    if index > fetched then
      places = call('ZRANGE', q.ready, seen, seen + size - 1)
      index, fetched = 1, #places
      size = math.min(2 * size, much)
      if fetched == 0 then return true end
    end
    local place = places[index]
    local j = read(q, id_in(place))
    if not j then
      -- A server that may evict keys has thrown it away.
      hide(q, place)
      index = index + 1
    elseif j.deadline and j.deadline <= now then
      passed = passed + 1
      if passed > bound then return false end
      pass_over(q, j, place)
      -- The next job of its lane may have come in behind it, and be overdue as well.
      if j.lane then
        settle_order(q)
        fetched, size = 0, 1
      end
      index = index + 1
    elseif j.lane and is_new(q, j.lane) then
      -- The places from here on may be others now.
      settle_order(q)
      fetched, size = 0, 1
    else
      seen = seen + 1
      index = index + 1
      if visit(j, place) then return true end
    end
  end
end

local function take(q, most)
  local places, jobs = {}, {}
  local all = true
  most = slots(q, most)
  if most > 0 then
    all = walk(q, most, function(j, place)
      jobs[#jobs + 1] = j
      places[#places + 1] = place
      return #jobs >= most
    end, load_whole)
    if #places > 0 then call('ZREMRANGEBYRANK', q.ready, 0, #places - 1) end
    take_out(q, places, jobs)
  end
  return jobs, all
end

-- Takes what the budgets of a limited queue let start, writes them, and parks.
local function pick(q, most, made)
  local room = slots(q, math.huge)
  if room <= 0 then return {}, true end
  local a = new_allowance(q, budgets_for(q, made.grants), most, room)
  local places, jobs = {}, {}
  local all = true
  if not is_done(a) then
    all = walk(q, 2 * most + 100, function(j, place)
      if may_start(a, j.lane) then
        jobs[#jobs + 1] = j
        places[#places + 1] = place
      end
      return is_done(a)
    end, load_whole)
  end
  in_chunks('ZREM', q.ready, places)
  take_out(q, places, jobs)
  for _, lane in ipairs(a.spent) do
    local budget, count = a.budgets[lane], a.used[lane]
    local version = store_state(q, lane, budget.states[count], budget.ttl)
    made.spent[#made.spent + 1] = {q.name, count, lane, version, budget.states[count]}
  end
  for lane, till in pairs(a.parked) do
    if lane then
      park_lane(q, lane, till)
    else
      q.parked, q.changed = till, true
      look_at(q, till)
    end
  end
  local want = wanted(a)
  leave_rest(a, want)
  if #want > 0 then
    local states, named = {}, {}
    local function state_of(lane)
      local version, state = limit_state(q, lane)
      states[#states + 1] = {lane, version, state or false}
    end
    if q.by_queue then state_of(false) end
    for _, lane in ipairs(want) do
      if q.by_lane and lane and not named[lane] then
        named[lane] = true
        state_of(lane)
      end
    end
    made.wants[#made.wants + 1] = {q.name, q.revision, want, states, q.limits, q.lane_limits}
  end
  return jobs, all
end

-- Returns the first of so many tokens, and by how much they rise. That is 1 up to where Lua no longer
-- knows every whole number.
local function next_tokens(q, count)
  -- The clock keeps them rising where a store is begun anew in a namespace used before.
  local last = math.max(q.token, math.floor(now * 1000000) - 1)
  local step = 1
  while last + step * (count + 1) - (last + step * count) ~= step do step = 2 * step end
  return math.ceil(last / step) * step + step, step
end

local function grant(q, most, made)
  promote(q, 2 * most + 100)
  local jobs, all
  if q.by_queue or q.by_lane then
    jobs, all = pick(q, most, made)
  else
    jobs, all = take(q, most)
  end
  if not all then made.next_in = 0 end
  if #jobs == 0 then return end
  local token, step = next_tokens(q, #jobs)
  q.token, q.changed = token + (#jobs - 1) * step, true
  q.waiting = q.waiting - #jobs
  local leases = {}
  for index, j in ipairs(jobs) do
    shift(q, j, RUNNING)
    local counts = tally(q, j.task)
    counts[STARTED] = counts[STARTED] + 1
    j.token, j.attempt, j.started = token + (index - 1) * step, j.attempt + 1, now
    j.worker, j.number, j.peer = made.worker, made.number, made.peer
    if j.mode == UNTIL_STARTED then free_key(q, j) end
    if j.deadline then
      call('ZREM', q.overdue, j.id)
      call('ZADD', q.running_overdue, j.deadline, j.id)
      expect(q, j.deadline)
    end
    local m = moving(j)
    call('HSET', j.hash, 'm', m)
    leases[2 * index - 1], leases[2 * index] = made.till, j.id
    made.held[#made.held + 1], made.held[#made.held + 2] = q.name, j.id
    made.leases[#made.leases + 1] = lease_of(j, m, j.k, j.body)
  end
  in_chunks('ZADD', q.leases, leases)
  expect(q, made.till)
  made.granted = q
end

-- Returns the jobs of a claim that its worker still holds, in the order in which it got them.
local function held_of(shared, worker, number, read)
  local jobs = {}
  local _, listed = claim_fields(number)
  local stored = call('HGET', shared .. 'held:' .. worker, listed)
  local refs = stored and cmsgpack.unpack(stored) or {}
  for index = 1, #refs, 2 do
    local j = read(open(refs[index]), refs[index + 1])
    if j and j.state == RUNNING and j.worker == worker and j.number == number then
      jobs[#jobs + 1] = j
    end
  end
  return jobs
end

-- Serves a claim; returns what goes into the reply.
local function claim(request)
  local worker, number, names, limit, lease, peer, grants, recall = unpack(request)
  local made = {worker = worker, number = number, peer = peer, till = now + lease, grants = grants,
    leases = {}, wants = {}, spent = {}, held = {}}
  local shared = CLUSTER and open(names[1]).base or COMMON
  local claims, mark = shared .. 'claims', pack(worker, number)
  local repeated = limit > 0 and
    (call('ZSCORE', claims, mark)
      or call('HEXISTS', shared .. 'held:' .. worker, (claim_fields(number))) == 1)
  if repeated then
    for _, j in ipairs(held_of(shared, worker, number, load_whole)) do
      made.leases[#made.leases + 1] = lease_of(j, moving(j), j.k, j.body)
    end
  elseif not recall then
    in_chunks('ZREM', claims, call('ZRANGEBYSCORE', claims, '-inf', now, 'LIMIT', 0, 4))
    for _, name in ipairs(names) do
      local q = known(name)
      if q and not q.paused then
        local left = limit - #made.leases
        if q.by_queue or q.by_lane then let_in(q, 2 * left + 100, now) end
        if left > 0 then grant(q, left, made) end
      end
    end
    if made.granted then
      call('ZADD', claims, made.till + lease, mark)
      hold(made.granted, worker, number, #made.leases, made.held)
    end
    if #made.leases < limit and peer ~= '' then idle(peer, names) end
  end
  local soonest = nil
  for _, name in ipairs(names) do
    local q = known(name)
    if q and not q.paused then
      soonest = least(soonest, tonumber(call('ZRANGE', q.delayed, 0, 0, 'WITHSCORES')[2]))
    end
  end
  local wait_for = made.next_in or (soonest and math.max(0, soonest - now))
  return {pack(now, wait_for), pack(made.wants), pack(made.spent), made.leases, repeated and 1 or 0}
end
