-- Registers: values by key, each with its version and its end, and the keys in order.

local VALUES, KEYS_, OVER = COMMON .. 'registers', COMMON .. 'registers:keys', COMMON .. 'registers:over'

-- Returns the version and the value, as they are stored, of a register that has its time.
local function read_register(key)
  local stored = call('HGET', VALUES, key)
  if not stored then return 0, false end
  local version, till = struct.unpack('>dd', stored)
  if till > 0 and till <= now then return 0, false end
  return version, stored
end

local function drop_register(key)
  call('HDEL', VALUES, key)
  call('ZREM', KEYS_, key)
  call('ZREM', OVER, key)
end

local function write_register(key, value, ttl)
  local version = next_version(COMMON .. 'versions')
  local till = ttl and now + ttl or 0
  call('HSET', VALUES, key, struct.pack('>dd', version, till) .. value)
  call('ZADD', KEYS_, 0, key)
  if ttl then call('ZADD', OVER, till, key) else call('ZREM', OVER, key) end
end

local function expire_registers(most)
  for _, key in ipairs(call('ZRANGEBYSCORE', OVER, '-inf', now, 'LIMIT', 0, most)) do
    drop_register(key)
  end
end
