-- Keeps calls that concern several queues until each of them has done its part. ARGV[2]: what is
-- asked for, and the mark of the call or its age; ARGV[3]: the call itself.

local INTENTS, SINCE = COMMON .. 'intents', COMMON .. 'intents:since'
-- Bytes after which the rest is left to the next time.
local MUCH = 1048576

tell_time()
local kind, value = unpack_all(ARGV[2])
local found = {}
if kind == 'keep' then
  call('HSET', INTENTS, value, ARGV[3])
  call('ZADD', SINCE, now, value)
elseif kind == 'drop' then
  allow_writes()
  call('HDEL', INTENTS, value)
  call('ZREM', SINCE, value)
elseif kind == 'postpone' then
  allow_writes()
  if call('ZSCORE', SINCE, value) then call('ZADD', SINCE, now, value) end
else
  allow_writes()
  local size = 0
  for _, mark in ipairs(call('ZRANGEBYSCORE', SINCE, '-inf', now - value, 'LIMIT', 0, 10)) do
    local intent = call('HGET', INTENTS, mark)
    found[#found + 1], found[#found + 2] = mark, intent
    size = size + #intent
    if size > MUCH then break end
  end
end
keep_time()
return found
