-- Writes whole jobs; an id that exists is left alone. ARGV[2]: the jobs; in a cluster their
-- sequences are free. Then of each what stays, the body, the result, the progress and the history,
-- empty where there is none.

tell_time()
local jobs = cmsgpack.unpack(ARGV[2])
local sequences = COMMON .. 'sequence'
local last = not CLUSTER and tonumber(call('GET', sequences) or 0)

-- Returns the queues that may have one of the sequences that are asked for; what is above the last
-- that was handed out nobody has.
local function crowded()
  local lowest, highest = last + 1, 0
  for _, item in ipairs(jobs) do
    if item[9] > 0 and item[9] <= last then
      lowest, highest = math.min(lowest, item[9]), math.max(highest, item[9])
    end
  end
  local found = {}
  if lowest > highest then return found end
  for _, name in ipairs(all_queues()) do
    local all = open(name).all
    if call('ZCOUNT', all, lowest, highest) > 0 then found[#found + 1] = all end
  end
  return found
end

local given, near = {}, CLUSTER and {} or crowded()

-- Returns that sequence if no job has it, else the next one.
local function reserve(sequence)
  if CLUSTER then return sequence end
  local taken = sequence <= 0 or given[sequence]
  for _, all in ipairs(near) do
    taken = taken or call('ZCOUNT', all, sequence, sequence) > 0
  end
  if taken then sequence = last + 1 end
  last = math.max(last, sequence)
  given[sequence] = true
  return sequence
end

local function live(q, j, item)
  local state = j.state
  if state == RUNNING then
    j.state = QUEUED
    shift(q, j, RUNNING)
    q.running = q.running + 1
    if j.lane then
      local lane = lane_of(q, j.lane)
      lane.running = lane.running + 1
      balance(q, lane)
    end
    -- No worker repeats a claim of this number: those of workers are positive.
    j.number = -j.seq
    call('ZADD', q.leases, item[21] or now, j.id)
    expect(q, item[21] or now)
    hold(q, j.worker, j.number, 1, {q.name, j.id})
    if j.deadline then
      call('ZADD', q.running_overdue, j.deadline, j.id)
      expect(q, j.deadline)
    end
  else
    j.state = QUEUED
    wait(q, j, state)
  end
end

local function put(q, index, item)
  local j = {q = q, id = item[2], hash = q.job .. item[2]}
  local at = 5 * index - 2
  j.task, j.lane, j.batch, j.max_attempts, j.mode, j.key, j.key_ttl, j.id_ttl, j.origin,
    j.submission = unpack_all(ARGV[at])
  j.state, j.token, j.attempt, j.crashes, j.priority = item[3], item[4], item[5], item[6], item[7]
  j.ready, j.seq, j.generation, j.deadline = item[8], reserve(item[9]), item[10], item[11]
  j.submitted, j.started, j.ended, j.expires = item[12], item[13], item[14], item[15]
  j.worker, j.peer, j.cancel, j.code, j.unknown = item[16], '', item[17], item[18], 0
  j.result_ttl, j.failure_ttl = item[19], item[20]
  q.token = math.max(q.token, j.token)
  local state = j.state
  call('HSET', j.hash, 'k', ARGV[at], 'b', ARGV[at + 1])
  if item[22] then call('HSET', j.hash, 'r', ARGV[at + 2]) end
  if ARGV[at + 3] ~= '' then call('HSET', j.hash, 'p', ARGV[at + 3]) end
  local history = ARGV[at + 4]
  if history ~= '' then
    keep_history(j.hash, struct.unpack('>I4', history), 1, history:sub(5))
  end
  j.state = QUEUED
  add(q, j)
  j.state = state
  if state >= SUCCEEDED then
    j.state = QUEUED
    j.value_until = j.expires
    j.ended = j.ended or now
    shift(q, j, state)
    if j.batch then batch_ended(q, j) end
    schedule_expiry(q, j, item[22])
  else
    live(q, j, item)
  end
  save(j)
end

for index, item in ipairs(jobs) do
  local q = open(item[1])
  q.changed = true
  if not load(q, item[2]) then put(q, index, item) end
end
if last then call('SET', sequences, last) end
return {close('')}
