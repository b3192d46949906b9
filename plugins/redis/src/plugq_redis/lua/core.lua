-- The call: its header, the time, and the queues that it touches.
--
-- KEYS[1] is the key of the clock. On a single server that is the clock of the namespace; in a
-- cluster each queue has its own, in its own slot, and a call touches one queue only. KEYS[2] is
-- never made.
-- ARGV[1] holds the prefix, the encoded namespace, the time of a manual clock, whether the server
-- is part of a cluster, the latest time that the caller knows of, and what channels begin with;
-- ARGV[2] what is asked for.
--
-- A value that may be absent is nil in what is packed by several arguments, false in tables.

if redis.replicate_commands then
  -- Before version 7 a script that asks for the time may write only after this.
  redis.replicate_commands()
end

local call, pack, unpack_all = redis.call, cmsgpack.pack, cmsgpack.unpack
local PREFIX, NAMESPACE, GIVEN, CLUSTER, KNOWN, CHANNEL = unpack_all(ARGV[1])
local COMMON = PREFIX .. '{' .. NAMESPACE .. '}:'
local EVENTS = CHANNEL .. 'events'
local PEERS = CHANNEL .. 'peer:'
local QUEUES = COMMON .. 'queues'
-- Queues by the time at which a sweep has something to do there, at which it has to look whether
-- somebody is to be woken or let in, and at which it forgets those that are not used.
local DUE, LOOKS, UNUSED = COMMON .. 'due', COMMON .. 'looks', COMMON .. 'unused'

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

-- Whether time alone has changed a job, of which this is what moves.
local function has_passed(m)
  local state, _, _, _, _, _, _, _, deadline, _, _, _, expires = unpack_all(m)
  return (state <= QUEUED and deadline ~= nil and deadline <= now)
    or (expires ~= nil and expires <= now)
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
    idle = base .. 'idle', delayed = base .. 'delayed',
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
      q.by_queue, q.by_lane, q.revision, q.parked, q.limits, q.lane_limits, q.settings, q.due,
      q.look, q.turned, q.turn, q.cursor = unpack_all(stored)
  else
    q.paused, q.draining, q.token, q.running, q.waiting = false, false, 0, 0, 0
    q.lane_max, q.by_queue, q.by_lane, q.revision = 1, false, false, 0
    q.limits, q.lane_limits, q.turned, q.turn = '', '', 0, 0
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
    q.by_queue, q.by_lane, q.revision, q.parked, q.limits, q.lane_limits, q.settings, q.due, q.look,
    q.turned, q.turn, q.cursor))
end

-- Notes that something is due in a queue at that time.
local function expect(q, at)
  if not q.soonest or at < q.soonest then q.soonest = at end
end

-- Notes that a sweep has to look at a queue at that time, although nothing is due.
local function look_at(q, at)
  if not q.sooner or at < q.sooner then q.sooner = at end
end

local function put_down(q, field, key, at)
  if q[field] == at then return end
  if at then call('ZADD', key, at, q.name) else call('ZREM', key, q.name) end
  q[field], q.changed = at, true
end

-- Sees to it that a sweep comes in time for what the call has noted. The times that are kept are
-- bounds, which only a sweep moves on; so most calls find that they hold.
local function enlist(q)
  if CLUSTER or q.swept then return end
  if not q.exists then
    if not q.changed then return end
    look_at(q, now)
  end
  if q.fresh > 0 then look_at(q, now) end
  if q.soonest and not (q.due and q.due <= q.soonest) then put_down(q, 'due', DUE, q.soonest) end
  if q.sooner and not (q.look and q.look <= q.sooner) then put_down(q, 'look', LOOKS, q.sooner) end
end

-- The attempts that did not succeed: h holds how many they are and in how many parts they lie, which
-- are h1, h2 and so on. So an attempt costs the same however many were before.
local function history_size(hash)
  local stored = call('HGET', hash, 'h')
  if not stored then return 0, 0 end
  return struct.unpack('>I4I4', stored)
end

local function keep_history(hash, count, parts, entries)
  call('HSET', hash, 'h', struct.pack('>I4I4', count, parts), 'h' .. parts, entries)
end

-- Returns the whole history, false where there is none.
local function history_of(hash)
  local count, parts = history_size(hash)
  if parts == 0 then return false end
  local found = {struct.pack('>I4', count)}
  for first = 1, parts, CHUNK do
    local fields = {}
    for part = first, math.min(parts, first + CHUNK - 1) do fields[#fields + 1] = 'h' .. part end
    for _, entries in ipairs(call('HMGET', hash, unpack(fields))) do
      found[#found + 1] = entries or ''
    end
  end
  return table.concat(found)
end

-- Returns a version that no key has had, also where a store is begun anew.
local function next_version(key)
  local version = math.max(tonumber(call('GET', key) or 0), math.floor(now * 1000000) - 1) + 1
  call('SET', key, string.format('%.0f', version))
  return version
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
