-- Pauses, drains, resumes or configures queues. ARGV[2]: the kind, and the queues or settings.

tell_time()
allow_writes()
local kind, items = unpack_all(ARGV[2])

local function configure(item)
  local q = open(item[1])
  local limits, lane_limits = item[5], item[6]
  local lane_max = q.lane_max
  q.max_running, q.lane_max, q.max_length = item[2] or nil, item[3], item[4] or nil
  q.settings = item[7]
  if limits ~= q.limits or lane_limits ~= q.lane_limits then
    q.revision = q.revision + 1
    q.limits, q.lane_limits = limits, lane_limits
    q.by_queue, q.by_lane = limits ~= '', lane_limits ~= ''
    q.parked = nil
    let_in(q, 1000000, math.huge)
  end
  if q.lane_max ~= lane_max then
    store_lanes(q)
    q.lanes, q.turn = {}, q.turn + 1
    turn_lanes(q, CHUNK)
  end
  return q
end

for _, item in ipairs(items) do
  local q
  if kind == 'configure' then
    q = configure(item)
  else
    q = open(item)
    if kind == 'drain' then
      q.draining = true
    else
      q.paused = kind == 'pause'
      if kind == 'resume' then q.draining = false end
    end
  end
  q.changed = true
  look_at(q, now)
  if kind ~= 'drain' then q.fresh = ready_count(q) end
end
return {close('')}
