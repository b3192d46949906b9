-- Ends attempts, then serves a claim if there is one. ARGV[2]: the settlements, the claim, and the
-- peer that claims next; then the results.

local SUCCEED, RETRY, FAIL, SNOOZE, SKIP, RELEASE = 1, 2, 3, 4, 5, 6
local COUNTED = {[RETRY] = RETRIED, [SNOOZE] = SNOOZED, [RELEASE] = RELEASED}
local RAN = {[SUCCEED] = true, [FAIL] = true, [RETRY] = true, [SKIP] = true}

local function state_after(j, outcome, delay)
  if outcome == SUCCEED then return SUCCEEDED end
  if j.cancel then return CANCELLED end
  if outcome == RETRY then return j.attempt < j.max_attempts and DELAYED or FAILED end
  if outcome == SNOOZE then return DELAYED end
  if outcome == RELEASE then return delay > 0 and DELAYED or QUEUED end
  return outcome == SKIP and SKIPPED or FAILED
end

-- Keeps what an attempt that did not succeed leaves behind.
local function keep_failure(j, outcome, code, problem)
  if problem then remember(j, unpack(problem)) end
  if outcome == SNOOZE or outcome == RELEASE then j.attempt = j.attempt - 1 end
  if outcome ~= RELEASE then
    j.unknown = 0
  elseif code == 'unknown_task' then
    if j.unknown == 0 then j.unknown_since = now end
    j.unknown = j.unknown + 1
  end
end

local function settle(settlement)
  local name, id, token, outcome, delay, at, code, problem, progress, result = unpack(settlement)
  local q = open(name)
  local j = load(q, id)
  if not j or j.token ~= token or j.state ~= RUNNING then return 0 end
  local state = state_after(j, outcome, delay)
  if progress then call('HSET', j.hash, 'p', progress) end
  if outcome ~= SUCCEED then
    keep_failure(j, outcome, code, problem)
  end
  local counts = tally(q, j.task)
  if RAN[outcome] and j.started then
    counts[RUN_SECONDS] = counts[RUN_SECONDS] + (now - j.started)
    counts[RUN_COUNT] = counts[RUN_COUNT] + 1
  end
  end_lease(q, j)
  if state >= SUCCEEDED then
    finish(q, j, state, code ~= '' and code or (state == FAILED and 'error' or ''),
      outcome == SUCCEED and result)
  else
    counts[COUNTED[outcome]] = counts[COUNTED[outcome]] + 1
    if state == DELAYED then
      if outcome == RETRY and at then
        j.ready = math.max(now, at)
      else
        j.ready = math.max(now, now + delay)
      end
    end
    wait(q, j, state)
  end
  if outcome == SUCCEED and result then
    call('HSET', j.hash, 'm', moving(j), 'r', ARGV[result])
  else
    save(j)
  end
  return state
end

tell_time()
allow_writes()
local settlements, request, caller = unpack_all(ARGV[2])
local states = {}
for index, settlement in ipairs(settlements) do states[index] = settle(settlement) end
local granted = false
if request then
  for _, q in ipairs(touched) do settle_leases(q) end
  granted = claim(request)
end
return {close(caller), pack(states), granted}
