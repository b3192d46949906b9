-- Stores jobs in the order given, unless one of them finds its queue full or drained.
-- ARGV[2]: the jobs, each with its sequence where those are handed out elsewhere, whether they are
-- only to be judged, and the mark of a call that is decided already, of which the queue does its part
-- once and then only answers. Then two values for each job: what stays, and the body.

local ACCEPTED_, DUPLICATE, FULL, DRAINING, REFUSED, LATE = 1, 2, 3, 4, 5, 6
-- Seconds.
local MARK_TTL = 2592000

tell_time()
local jobs, judged_only, mark = unpack_all(ARGV[2])
local reply = {}
local sequence, sequences = nil, COMMON .. 'sequence'

local function next_sequence(item)
  if item[11] then return item[11] end
  sequence = (sequence or tonumber(call('GET', sequences) or 0)) + 1
  return sequence
end

local function standing(status, j)
  return {status, j.id, is_overdue(j) and FAILED or j.state, j.seq, j.generation}
end

-- Returns why a job is not stored, nil if it is to be; and the former one that has its id.
local function judge(q, item, new)
  local j = load(q, item[2])
  if j and not is_expired(j) then
    if j.submission == new.submission then
      return standing(j.state == CANCELLED and DUPLICATE or ACCEPTED_, j)
    end
    if j.state ~= CANCELLED then return standing(DUPLICATE, j) end
  end
  if new.mode then
    local holder = holder_of(q, new.key)
    if holder then
      local present = load(q, holder.id)
      if present then return standing(DUPLICATE, present) end
      return {DUPLICATE, holder.id, holder.state, holder.seq, holder.generation}
    end
  end
  if item[10] and item[10] < now then return {LATE, item[2], QUEUED, 0, 0} end
  return nil, j
end

local function read(q, index, item)
  local j = {q = q, id = item[2], hash = q.job .. item[2]}
  j.task, j.lane, j.batch, j.max_attempts, j.mode, j.key, j.key_ttl, j.id_ttl, j.origin,
    j.submission = unpack_all(ARGV[2 * index + 1])
  return j
end

-- Returns the answers of a call that a queue refuses, nil if none does; or, if jobs are only judged,
-- those that they would get if another queue refused the call.
local function refusal()
  local stored, keys, added, full, answers = {}, {}, {}, {}, {}
  local refuses = false
  for index, item in ipairs(jobs) do
    local q = open(item[1])
    local new = read(q, index, item)
    local identity = q.base .. item[2]
    local answer = nil
    if not stored[identity] then answer = judge(q, item, new) end
    if not answer then
      answer = {q.draining and DRAINING or REFUSED, item[2], QUEUED, 0, 0}
      refuses = refuses or q.draining
      local key = new.mode and q.base .. new.key
      if not stored[identity] and not (key and keys[key]) then
        stored[identity] = true
        if key then keys[key] = true end
        added[q.base] = (added[q.base] or 0) + 1
        if q.max_length and q.waiting + added[q.base] > q.max_length then
          full[q.base] = true
          refuses = true
        end
      end
    end
    answers[index] = answer
  end
  if not refuses and not judged_only then return nil end
  for index, item in ipairs(jobs) do
    if answers[index][1] == REFUSED and full[open(item[1]).base] then answers[index][1] = FULL end
  end
  return answers
end

local function put(q, index, item, j, former)
  j.generation = 0
  if former then
    if not is_expired(former) then j.generation = former.generation + 1 end
    remove(q, former)
  end
  j.seq = next_sequence(item)
  j.state, j.token, j.attempt, j.crashes, j.priority = QUEUED, 0, 0, 0, item[3]
  j.submitted, j.worker, j.peer, j.cancel, j.code, j.unknown = now, '', '', false, '', 0
  j.result_ttl, j.failure_ttl = item[8], item[9]
  j.ready = math.max(now, item[5] or now + item[4])
  j.deadline = item[7]
  if item[6] then j.deadline = least(j.deadline, now + item[6]) end
  add(q, j)
  hold_key(q, j)
  wait(q, j, j.ready > now and DELAYED or QUEUED)
  call('HSET', j.hash, 'm', moving(j), 'k', ARGV[2 * index + 1], 'b', ARGV[2 * index + 2])
  return {ACCEPTED_, j.id, j.state, j.seq, j.generation}
end

local done = false
if mark then
  local marks = open(jobs[1][1]).base .. 'marks'
  done = call('ZSCORE', marks, mark)
  -- It stays as long as anybody may still ask for the same.
  call('ZADD', marks, now + MARK_TTL, mark)
end

local bounded = judged_only
for _, item in ipairs(jobs) do
  local q = open(item[1])
  q.changed = q.changed or not q.exists
  bounded = bounded or q.draining or q.max_length
end
local answers = bounded and not mark and refusal() or nil
if not answers then
  answers = {}
  for index, item in ipairs(jobs) do
    local q = open(item[1])
    local j = read(q, index, item)
    local answer, former = judge(q, item, j)
    if not done then answer = answer or put(q, index, item, j, former) end
    -- What was done before and has gone since has no answer.
    answers[index] = answer or {}
  end
end
if sequence then call('SET', sequences, sequence) end
for _, answer in ipairs(answers) do
  for _, value in ipairs(answer) do reply[#reply + 1] = value end
end
return {close(''), pack(reply)}
