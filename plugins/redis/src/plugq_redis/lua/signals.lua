-- Who is idle, who is woken and told, and the end of every call that writes.

local function idle_list(peer)
  local stored = call('HGET', COMMON .. 'idle', peer)
  return stored and cmsgpack.unpack(stored) or {}
end

-- Takes a peer off the list of every queue.
local function busy(q, peer)
  call('ZREM', q.idle, peer)
  if CLUSTER then return end
  for _, name in ipairs(idle_list(peer)) do call('ZREM', open(name).idle, peer) end
  call('HDEL', COMMON .. 'idle', peer)
end

-- Registers a peer as idle for queues.
local function idle(peer, names)
  if not CLUSTER then
    local list, there = idle_list(peer), {}
    for _, name in ipairs(list) do there[name] = true end
    local before = #list
    for _, name in ipairs(names) do
      if not there[name] then
        there[name] = true
        list[#list + 1] = name
      end
    end
    if #list > before then call('HSET', COMMON .. 'idle', peer, pack(list)) end
  end
  for _, name in ipairs(names) do
    local q = open(name)
    call('ZADD', q.idle, now, peer)
    -- A claim of a limited queue may leave jobs that could start.
    if q.exists and (q.by_queue or q.by_lane) then look_at(q, now) end
    -- Peers poll; one that did not come for a day has gone.
    for _, gone in ipairs(call('ZRANGEBYSCORE', q.idle, '-inf', now - DAY, 'LIMIT', 0, 10)) do
      busy(q, gone)
    end
  end
end

-- What the caller has to publish. In a cluster it does so on the node that all subscribe at, so that
-- messages arrive in the order of the calls and it is known who is there to hear them.
local outgoing = {}

-- Sends a message to a peer; returns whether it was heard, as far as that is known.
local function publish(peer, message)
  if not CLUSTER then return call('PUBLISH', PEERS .. peer, message) > 0 end
  outgoing[#outgoing + 1] = peer
  outgoing[#outgoing + 1] = message
  return true
end

-- Wakes at most so many idle peers, those who wait longest first, never the caller.
local function wake(q, most, caller)
  local passed = 0
  -- In a cluster the peer may have been woken by another queue, and somebody else is to come to this.
  local message = pack(CLUSTER and {'w', q.name} or {'w'})
  while most > 0 do
    local peers = call('ZRANGE', q.idle, passed, passed + most - 1)
    if #peers == 0 then return end
    for _, peer in ipairs(peers) do
      if peer == caller then
        passed = passed + 1
      else
        busy(q, peer)
        -- One that does not hear it has gone.
        if publish(peer, message) then most = most - 1 end
      end
    end
  end
end

local function tell(kind, list)
  for peer, refs in pairs(list) do
    -- A message is no longer than what Lua's stack would take.
    for first = 1, #refs, CHUNK do
      publish(peer, pack({kind, unpack(refs, first, math.min(#refs, first + CHUNK - 1))}))
    end
  end
end

-- Writes what the call has gathered, then tells and wakes. With everything set, idle peers are
-- woken for whatever is claimable and not only for what has become so. Returns how many listen to
-- events; in a cluster the time, and what is to be published.
local function close(caller, everything)
  for _, q in ipairs(touched) do
    settle_order(q)
    settle_leases(q)
    if #q.expiring > 0 then in_chunks('ZADD', q.expiry, q.expiring) end
    if #q.listed > 0 then in_chunks('ZADD', q.all, q.listed) end
    for task, counts in pairs(q.tallies) do
      call('HSET', q.tallies_key, task, pack(unpack(counts, 1, RATE_AT)))
    end
    store_lanes(q)
    enlist(q)
    if q.changed then store(q) end
  end
  store_batches()
  keep_time()
  tell('f', finished)
  tell('c', cancels)
  -- Waking opens queues, which have nothing to tell.
  for index = 1, #touched do
    local q = touched[index]
    if q.fresh > 0 or everything then
      local ready = ready_count(q)
      local most = slots(q, ready)
      if not everything then most = math.min(most, q.fresh) end
      wake(q, math.min(most, ready), caller)
    end
  end
  if not CLUSTER then return listeners() end
  table.insert(outgoing, 1, pack(now))
  return outgoing
end
