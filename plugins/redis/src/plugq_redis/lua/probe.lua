-- Returns the commands that this user may not use; a script that is stopped in its midst by such a
-- refusal would have done a part.

local keys = {COMMON .. 'probe:s', COMMON .. 'probe:h', COMMON .. 'probe:z', COMMON .. 'probe:m'}
local text, hash, order, members = unpack(keys)
local peer = PEERS .. ':probe'
local commands = {
  {'TIME'}, {'SET', text, 1}, {'GET', text}, {'INCR', text},
  {'HSET', hash, 'a', 1}, {'HGET', hash, 'a'}, {'HMGET', hash, 'a'}, {'HEXISTS', hash, 'a'},
  {'HGETALL', hash}, {'HKEYS', hash}, {'HDEL', hash, 'b'}, {'HINCRBY', hash, 'a', 1},
  {'ZADD', order, 1, 'a'}, {'ZCARD', order}, {'ZCOUNT', order, 1, 1}, {'ZRANK', order, 'a'},
  {'ZSCORE', order, 'a'}, {'ZRANGE', order, 0, 0}, {'ZRANGEBYSCORE', order, 1, 1},
  {'ZREVRANGEBYSCORE', order, 1, 1}, {'ZRANGEBYLEX', order, '[a', '[a'}, {'ZREM', order, 'b'},
  {'ZREMRANGEBYSCORE', order, 2, 2}, {'ZREMRANGEBYRANK', order, 5, 5}, {'SADD', members, 'a'}, {'SMEMBERS', members},
  {'SREM', members, 'b'}, {'HSCAN', hash, 0}, {'HLEN', hash},
  {'PUBLISH', peer, ''}, {'PUBSUB', 'NUMSUB', peer}, {'DEL', unpack(keys)},
}
local denied = {}
for _, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then
    local text_of = reply.err
    if text_of:find('NOPERM', 1, true) or text_of:find("can't", 1, true)
      or text_of:find('ACL', 1, true) then
      denied[#denied + 1] = command[1]
    end
  end
end
return denied
