-- The ready order and the lanes.
--
-- The ready order is a sorted set by priority, in which members stand by ready time and sequence.
-- It shows the jobs without a lane and of each lane the first ones, as many as may run beside
-- those that do. So taking jobs from it changes nothing for the others, and what a busy or parked
-- lane holds costs nothing.
--
-- The hash of the lanes begins anew, under the next number, when a lane may run another number of
-- jobs: with turn. Lanes move there, and show what they may, as they are touched or by a sweep; turned
-- is the first number under which there may still be some.

local function place_of(j)
  return struct.pack('>dd', j.ready, j.seq) .. j.id
end

local function id_in(place)
  return place:sub(17)
end

-- Enters what was put into the ready order so far; every reader of it calls this first.
local function settle_order(q)
  if #q.adds > 0 then
    in_chunks('ZADD', q.ready, q.adds)
    q.adds = {}
  end
end

local function show(q, order, place)
  local adds = q.adds
  adds[#adds + 1] = order
  adds[#adds + 1] = place
  q.fresh = q.fresh + 1
end

local function hide(q, place)
  settle_order(q)
  return call('ZREM', q.ready, place)
end

local function lanes_key(q, turn)
  return q.base .. (turn == 0 and 'lanes' or string.format('lanes:%d', turn))
end

-- Makes the ready order show as many jobs of a lane as may run.
local function balance(q, lane)
  local most = lane.parked and 0 or math.max(0, q.lane_max - lane.running)
  local shown = lane.shown
  if most < shown then
    settle_order(q)
    in_chunks('ZREM', q.ready, call('ZRANGE', lane.key, most, shown - 1))
    lane.shown = most
  elseif most > shown then
    local more = call('ZRANGE', lane.key, shown, most - 1, 'WITHSCORES')
    for index = 1, #more, 2 do show(q, more[index + 1], more[index]) end
    lane.shown = shown + #more / 2
  end
  lane.changed = true
end

-- Returns a lane, and whether it was just brought up to date: then the ready order may have changed.
local function lane_of(q, name)
  local lane = q.lanes[name]
  if lane then return lane, false end
  lane = {name = name, key = q.lane_of .. name, shown = 0, running = 0}
  q.lanes[name] = lane
  for turn = q.turn, q.turned, -1 do
    local key = lanes_key(q, turn)
    local stored = call('HGET', key, name)
    if stored then
      lane.shown, lane.running, lane.parked = unpack_all(stored)
      if turn == q.turn then return lane, false end
      call('HDEL', key, name)
      balance(q, lane)
      return lane, true
    end
  end
  return lane, false
end

-- Brings lanes up to date, about so many; returns whether there may be more.
local function turn_lanes(q, most)
  while q.turned < q.turn and most > 0 do
    local key = lanes_key(q, q.turned)
    -- After a failover the cursor may lead past some lanes, which the next round finds.
    local page = call('HSCAN', key, q.cursor or '0', 'COUNT', 100)
    for index = 1, #page[2], 2 do lane_of(q, page[2][index]) end
    most = most - math.max(1, #page[2] / 2)
    q.cursor, q.changed = page[1] ~= '0' and page[1] or nil, true
    if not q.cursor and call('HLEN', key) == 0 then q.turned = q.turned + 1 end
  end
  return q.turned < q.turn
end

-- Puts a job that has become queued at its place.
local function enter(q, j)
  local place = place_of(j)
  if not j.lane then
    show(q, -j.priority, place)
    return
  end
  local lane = lane_of(q, j.lane)
  call('ZADD', lane.key, -j.priority, place)
  lane.changed = true
  if lane.parked then return end
  if lane.shown < q.lane_max - lane.running then
    show(q, -j.priority, place)
    lane.shown = lane.shown + 1
  elseif lane.shown > 0 and call('ZRANK', lane.key, place) < lane.shown then
    show(q, -j.priority, place)
    lane.shown = lane.shown + 1
    balance(q, lane)
  end
end

-- Takes out a job that leaves queued by another way than being granted.
local function withdraw(q, j)
  local place = place_of(j)
  if not j.lane then
    hide(q, place)
    return
  end
  local lane = lane_of(q, j.lane)
  local rank = call('ZRANK', lane.key, place)
  if rank then
    call('ZREM', lane.key, place)
    if rank < lane.shown then
      hide(q, place)
      lane.shown = lane.shown - 1
    end
    balance(q, lane)
  end
end

-- Lets jobs run that have been taken out of the ready order.
local function take_out(q, places, jobs)
  for index, j in ipairs(jobs) do
    if j.lane then
      local lane = lane_of(q, j.lane)
      call('ZREM', lane.key, places[index])
      lane.shown = lane.shown - 1
      lane.running = lane.running + 1
      lane.changed = true
    end
  end
  q.running = q.running + #jobs
end

local function leave_running(q, j)
  q.running = q.running - 1
  if q.max_running then q.fresh = q.fresh + 1 end
  if j.lane then
    local lane = lane_of(q, j.lane)
    lane.running = lane.running - 1
    balance(q, lane)
  end
end

-- How many of so many jobs may start now.
local function slots(q, most)
  if q.paused or q.parked then return 0 end
  if not q.max_running then return most end
  return math.max(0, math.min(most, q.max_running - q.running))
end

local function ready_count(q)
  settle_order(q)
  return call('ZCARD', q.ready)
end

local function park_lane(q, name, till)
  local lane = lane_of(q, name)
  lane.parked = till
  call('ZADD', q.parked_lanes, till, name)
  look_at(q, till)
  balance(q, lane)
end

-- Lets in what was parked until now or earlier, at most so many lanes; returns how many.
local function let_in(q, most, at)
  if q.parked and q.parked <= at then
    q.parked, q.changed = nil, true
    -- One claimer at a time: they would only take turns on the one state.
    q.fresh = math.min(1, ready_count(q))
  end
  if most <= 0 then return 0 end
  most = math.min(most, MANY)
  local names = call('ZRANGEBYSCORE', q.parked_lanes, '-inf', at, 'LIMIT', 0, most)
  in_chunks('ZREM', q.parked_lanes, names)
  for _, name in ipairs(names) do
    local lane = lane_of(q, name)
    lane.parked = nil
    balance(q, lane)
  end
  return #names
end

local function store_lanes(q)
  local key = lanes_key(q, q.turn)
  for name, lane in pairs(q.lanes) do
    if lane.changed then
      if lane.shown == 0 and lane.running == 0 and not lane.parked then
        call('HDEL', key, name)
      else
        call('HSET', key, name, pack(lane.shown, lane.running, lane.parked))
      end
    end
  end
end
