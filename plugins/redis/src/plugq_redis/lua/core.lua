-- The call: its header, the time, and the queues that it touches.
--
-- KEYS[1] is the key of the clock. On a single server that is the clock of the namespace; in a
-- cluster each queue has its own, in its own slot, and a call touches one queue only. KEYS[2] is
-- never made.
-- ARGV[1] holds the prefix, the encoded namespace, the time of a manual clock, whether the server
-- is part of a cluster, and the latest time that the caller knows of; ARGV[2] what is asked for.
--
-- A value that may be absent is nil in what is packed by several arguments, false in tables.

if redis.replicate_commands then
  -- Before version 7 a script that asks for the time may write only after this.
  redis.replicate_commands()
end

local call, pack, unpack_all = redis.call, cmsgpack.pack, cmsgpack.unpack
local PREFIX, NAMESPACE, GIVEN, CLUSTER, KNOWN = unpack_all(ARGV[1])
local COMMON = PREFIX .. '{' .. NAMESPACE .. '}:'
local EVENTS = PREFIX .. NAMESPACE .. ':events'
local PEERS = PREFIX .. NAMESPACE .. ':peer:'
local QUEUES = COMMON .. 'queues'

local DELAYED, QUEUED, RUNNING = 1, 2, 3
local SUCCEEDED, FAILED, CANCELLED, SKIPPED = 4, 5, 6, 7
local UNTIL_STARTED, UNTIL_FINISHED, THROTTLE = 1, 2, 3

local LINGER = 10
local BATCH_TTL = 604800
local RATE_TIME = 60
local GRANT_AGE = 0.1
local DAY = 86400
-- As many values go into one command; Lua's stack takes about 8,000.
local CHUNK = 2000
-- More than any call deals with; numbers that are much longer are written in a way that no command
-- reads.
local MANY = 1000000

local now, latest
local queues, touched = {}, {}

local function least(a, b)
  if a == nil or (b ~= nil and b < a) then return b end
  return a
end

-- Reads the time, which never runs backwards.
local function tell_time()
  now = GIVEN
  if not now then
    local time = call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
  end
  latest = tonumber(call('GET', KEYS[1]) or 0)
  now = math.max(now, latest, KNOWN)
end

local function keep_time()
  if now > latest then call('SET', KEYS[1], now) end
end

-- Lets a call that frees memory write even if there is none left.
local function allow_writes()
  call('DEL', KEYS[2])
end

local function encoded(name)
  return (name:gsub('[^A-Za-z0-9_.~-]', function(char)
    return string.format('%%%02X', char:byte())
  end))
end

-- Returns a queue; it is stored, and thereby exists, once it is marked as changed.
local function open(name)
  local q = queues[name]
  if q then return q end
  local base = PREFIX .. '{' .. NAMESPACE .. '/' .. encoded(name) .. '}:'
  q = {
    name = name, base = base, job = base .. 'j:', ready = base .. 'ready', lane_of = base .. 'l:',
    lanes_key = base .. 'lanes', idle = base .. 'idle', delayed = base .. 'delayed',
    leases = base .. 'leases', overdue = base .. 'overdue', running_overdue = base .. 'ending',
    expiry = base .. 'expiry', all = base .. 'all', keys = base .. 'unique',
    throttles = base .. 'throttles', parked_lanes = base .. 'parked', tallies_key = base .. 'tally',
    shared = CLUSTER and base or COMMON,
    fresh = 0, lanes = {}, tallies = {}, adds = {}, ended = {}, freed = {}, expiring = {}, listed = {},
  }
  local stored = call('GET', base .. 'queue')
  if stored then
    q.exists = true
    q.paused, q.draining, q.token, q.running, q.waiting, q.max_running, q.lane_max, q.max_length,
      q.by_queue, q.by_lane, q.revision, q.parked, q.limits, q.lane_limits, q.settings =
      unpack_all(stored)
  else
    q.paused, q.draining, q.token, q.running, q.waiting = false, false, 0, 0, 0
    q.lane_max, q.by_queue, q.by_lane, q.revision = 1, false, false, 0
    q.limits, q.lane_limits = '', ''
  end
  queues[name] = q
  touched[#touched + 1] = q
  return q
end

local function known(name)
  local q = open(name)
  return q.exists and q or nil
end

local function all_queues(names)
  if names then return names end
  return call('SMEMBERS', QUEUES)
end

local function store(q)
  if not q.exists then
    q.exists = true
    if not CLUSTER then call('SADD', QUEUES, q.name) end
  end
  q.changed = false
  call('SET', q.base .. 'queue', pack(
    q.paused, q.draining, q.token, q.running, q.waiting, q.max_running, q.lane_max, q.max_length,
    q.by_queue, q.by_lane, q.revision, q.parked, q.limits, q.lane_limits, q.settings))
end

-- Runs a command on many values, as many at a time as a command takes.
local function in_chunks(command, key, values)
  local count = #values
  if count == 0 then return end
  for first = 1, count, CHUNK do
    call(command, key, unpack(values, first, math.min(count, first + CHUNK - 1)))
  end
end

local function listeners()
  return call('PUBSUB', 'NUMSUB', EVENTS)[2]
end
