-- Makes an operator's change of jobs. ARGV[2]: the kind, the states in which a job may be, its
-- parameter, and the jobs with their sequences.

local DONE, REQUESTED, UNCHANGED, NOT_FOUND, CONFLICT = 1, 2, 3, 4, 5

tell_time()
allow_writes()
local kind, allowed, value, refs = unpack_all(ARGV[2])
local states = {}
for _, state in ipairs(allowed) do states[state] = true end
local edits = {}

function edits.cancel(q, j, state)
  if state > RUNNING then return UNCHANGED, state end
  if state == RUNNING then
    j.cancel = true
    save(j)
    if j.peer ~= '' then note(cancels, j.peer, j) end
    return REQUESTED, state
  end
  finish(q, j, CANCELLED, '', false)
  save(j)
  return DONE, CANCELLED
end

function edits.retain(q, j, state)
  if not j.ended then
    j.result_ttl, j.failure_ttl = value, value
    save(j)
    return DONE, state
  end
  if not j.value_until or j.value_until > now then
    j.value_until = value and now + value or nil
  end
  j.expires = value and math.max(now + value, j.ended + j.id_ttl) or nil
  save(j)
  schedule_expiry(q, j, call('HEXISTS', j.hash, 'r') == 1)
  return DONE, state
end

function edits.reprioritise(q, j, state)
  if state > RUNNING then return UNCHANGED, state end
  if j.state == QUEUED then withdraw(q, j) end
  j.priority = value
  if j.state == QUEUED then enter(q, j) end
  save(j)
  return DONE, state
end

function edits.redrive(q, j)
  if j.state < FAILED then return CONFLICT, j.state end
  if j.mode then
    local holder = holder_of(q, j.key)
    if holder and holder.seq ~= j.seq then return CONFLICT, j.state end
  end
  j.attempt, j.crashes, j.unknown, j.cancel, j.code, j.ready = 0, 0, 0, false, '', now
  j.deadline, j.ended, j.expires, j.value_until = nil, nil, nil, nil
  call('HDEL', j.hash, 'r', 'p')
  call('ZREM', q.expiry, j.id)
  local counts = tally(q, j.task)
  counts[REDRIVEN] = counts[REDRIVEN] + 1
  batch_reenter(q, j)
  hold_key(q, j)
  wait(q, j, QUEUED)
  save(j)
  return DONE, QUEUED
end

function edits.purge(q, j)
  if j.state < SUCCEEDED then return CONFLICT, j.state end
  remove(q, j)
  tell_finished(j)
  return DONE, false
end

local answers = {}
for index, ref in ipairs(refs) do
  local q = known(ref[1])
  local j = q and load(q, ref[2])
  answers[index] = {NOT_FOUND, false, '', false, false}
  if j and not is_expired(j) and (ref[3] == 0 or ref[3] == j.seq) then
    local state = is_overdue(j) and FAILED or j.state
    if #allowed == 0 or states[state] then
      local status, after = edits[kind](q, j, state)
      -- What is gathered up to here is part of what the next one finds.
      if #q.expiring > 0 then
        in_chunks('ZADD', q.expiry, q.expiring)
        q.expiring = {}
      end
      answers[index] = {status, after, j.task, j.lane or false, j.batch or false}
    end
  end
end
return {close(''), pack(answers)}
