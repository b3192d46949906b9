-- Counters by task, and by batch.

-- Where the values of a tally stand: first the counts by state, then what happened so far.
local ACCEPTED, STARTED, ENDED_AS, RETRIED, SNOOZED, RELEASED = 8, 9, 6, 14, 15, 16
local LEASE_ENDED, REDRIVEN, REMOVED = 17, 18, 19
local RUN_SECONDS, RUN_COUNT, RATE, RATE_AT = 20, 21, 22, 23

local function tally(q, task)
  local counts = q.tallies[task]
  if counts then return counts end
  local stored = call('HGET', q.tallies_key, task)
  if stored then
    counts = {unpack_all(stored)}
  else
    counts = {}
    for index = 1, RATE_AT do counts[index] = 0 end
  end
  q.tallies[task] = counts
  return counts
end

local function count_end(counts, state)
  counts[ENDED_AS + state] = counts[ENDED_AS + state] + 1
  local at = counts[RATE_AT]
  if now > at then
    counts[RATE] = counts[RATE] * math.exp((at - now) / RATE_TIME)
    counts[RATE_AT] = now
  end
  counts[RATE] = counts[RATE] + 1 / RATE_TIME
end

-- A batch: born, a number that tells it from a former one of its name; till, when it is
-- forgotten, while no job is live; and its counts by state.
local books = {}

local function batch_stored(q, name)
  local book = books[q.shared]
  if not book then
    book = {}
    books[q.shared] = book
  end
  local batch = book[name]
  if batch == nil then
    local stored = call('HGET', q.shared .. 'batches', name)
    batch = false
    if stored then
      batch = {unpack_all(stored)}
      batch = {born = batch[1], till = batch[2], scheduled = batch[2] ~= nil,
        unpack(batch, 3, 9)}
    end
    book[name] = batch
  end
  return batch or nil, book
end

local function batch_known(q, name)
  local batch, book = batch_stored(q, name)
  if batch and batch.till and batch.till <= now then return nil, book, batch end
  return batch, book, batch
end

local function batch_enter(q, j)
  local batch, book, former = batch_known(q, j.batch)
  if not batch then
    batch = {born = call('INCR', q.shared .. 'born'), 0, 0, 0, 0, 0, 0, 0}
    batch.scheduled = former and former.scheduled
    book[j.batch] = batch
  end
  batch[j.state] = batch[j.state] + 1
  batch.till, batch.changed = nil, true
  j.born = batch.born
end

-- Prepares for a final job to be live again, in a batch that may be forgotten.
local function batch_reenter(q, j)
  if not j.batch then return end
  local batch = batch_known(q, j.batch)
  if batch and batch.born == j.born then
    batch.till, batch.changed = nil, true
  else
    batch_enter(q, j)
  end
end

local function batch_shift(q, j, state)
  local batch = batch_stored(q, j.batch)
  if batch and batch.born == j.born then
    batch[j.state] = batch[j.state] - 1
    batch[state] = batch[state] + 1
    batch.changed = true
  end
end

local function batch_ended(q, j)
  local batch = batch_stored(q, j.batch)
  if batch and batch.born == j.born and batch[1] == 0 and batch[2] == 0 and batch[3] == 0 then
    batch.till, batch.changed = now + BATCH_TTL, true
  end
end

local function store_batches()
  for shared, book in pairs(books) do
    for name, batch in pairs(book) do
      if batch and batch.changed then
        call('HSET', shared .. 'batches', name, pack(batch.born, batch.till, unpack(batch, 1, 7)))
        if batch.till then
          call('ZADD', shared .. 'batches:over', batch.till, name)
        elseif batch.scheduled then
          call('ZREM', shared .. 'batches:over', name)
        end
      end
    end
  end
end

local function forget_batches(shared, most)
  local names = call('ZRANGEBYSCORE', shared .. 'batches:over', '-inf', now, 'LIMIT', 0, most)
  in_chunks('HDEL', shared .. 'batches', names)
  in_chunks('ZREM', shared .. 'batches:over', names)
end
