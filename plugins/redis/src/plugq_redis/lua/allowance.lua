-- What one claim may start of a limited queue, as plugq.allowance says it. The queue itself stands
-- under false, lanes under their names.

local NAMED = 100

local function state_field(lane)
  return lane and 'l' .. lane or 'q'
end

-- Returns the version and the state of a limiter; 0 where there is none, or none any more.
local function limit_state(q, lane)
  local stored = call('HGET', q.base .. 'limits', state_field(lane))
  if stored then
    local version, till, state = unpack_all(stored)
    if till > now then return version, state end
  end
  return 0, nil
end

local function store_state(q, lane, state, ttl)
  local field, version = state_field(lane), next_version(q.shared .. 'versions')
  call('HSET', q.base .. 'limits', field, pack(version, now + ttl, state or nil))
  call('ZADD', q.base .. 'limits:over', now + ttl, field)
  look_at(q, now + ttl)
  return version
end

local function forget_states(q, most)
  local fields = call('ZRANGEBYSCORE', q.base .. 'limits:over', '-inf', now, 'LIMIT', 0, most)
  in_chunks('HDEL', q.base .. 'limits', fields)
  in_chunks('ZREM', q.base .. 'limits:over', fields)
  return #fields
end

-- Returns the budgets that a claim brings for a queue and that are current.
local function budgets_for(q, grants)
  local found = {}
  for _, grant in ipairs(grants) do
    local name, revision, at, budgets = unpack(grant)
    if name == q.name and revision == q.revision and now - GRANT_AGE <= at and at <= now then
      for _, budget in ipairs(budgets) do
        local lane = budget[1]
        local limited = q.by_queue
        if lane then limited = q.by_lane end
        if limited then
          found[lane] = {lane = lane, expect = budget[2], states = budget[3], ttl = budget[4],
            retry_at = budget[5]}
        end
      end
    end
  end
  for lane, budget in pairs(found) do
    if limit_state(q, lane) ~= budget.expect then found[lane] = nil end
  end
  return found
end

local function new_allowance(q, budgets, left, room)
  return {
    q = q, budgets = budgets, room = room, left = left, most = math.min(left, room),
    names = math.max(left, NAMED), examined = 2 * left + 100, taken = 0, short = false, used = {},
    spent = {}, ready = {}, parked = {},
  }
end

-- Whether no further job is to be judged.
local function is_done(a)
  if a.taken >= a.most or a.examined <= 0 or a.parked[false] then return true end
  return a.short and #a.ready >= math.min(a.names, a.room - a.taken)
end

local function park_by(a, budget)
  if budget.retry_at and budget.retry_at > now then a.parked[budget.lane] = budget.retry_at end
end

-- Whether a budget is missing or used up; one that is used up may park.
local function lacks(a, lane)
  local budget = a.budgets[lane]
  if not budget then return true end
  if (a.used[lane] or 0) < #budget.states then return false end
  park_by(a, budget)
  return true
end

local function spend(a, lane)
  local budget = a.budgets[lane]
  local count = (a.used[lane] or 0) + 1
  if count == 1 then a.spent[#a.spent + 1] = lane end
  a.used[lane] = count
  -- Without a look at the next job: it would have to be found first.
  if count == #budget.states then park_by(a, budget) end
end

-- Judges the next job of the ready order; returns whether it is to start.
local function may_start(a, lane)
  a.examined = a.examined - 1
  local by_lane = a.q.by_lane and lane
  a.short = a.q.by_queue and lacks(a, false)
  local short = a.short or (by_lane and lacks(a, lane))
  if short then
    local parked = a.parked[false] or (lane and a.parked[lane])
    if not parked and #a.ready < a.names then a.ready[#a.ready + 1] = lane or false end
    return false
  end
  a.taken = a.taken + 1
  if a.q.by_queue then spend(a, false) end
  if by_lane then spend(a, lane) end
  return true
end

-- The lanes of jobs that could start if there were budgets, in order.
local function wanted(a)
  if a.parked[false] then return {} end
  local names = {}
  for index = 1, math.min(#a.ready, a.room - a.taken) do names[index] = a.ready[index] end
  return names
end

-- Makes what stays idle peers' business of what the claim leaves; the claimer comes again at once
-- for what it wants.
local function leave_rest(a, want)
  local q, left = a.q, 0
  if a.taken < a.left and #want > 0 then
    left = a.short and math.huge or math.min(#want, a.left - a.taken)
  end
  local more = a.taken >= a.left and a.room > a.taken and a.q.by_queue and not a.parked[false]
  q.fresh = math.max(math.max(0, q.fresh - a.taken) - left, more and 1 or 0)
end
