-- Returns jobs as they are stored. ARGV[2]: the jobs; ARGV[3]: whether with their bodies.

tell_time()
local jobs, past = {}, false
for index, ref in ipairs(cmsgpack.unpack(ARGV[2])) do
  local base = PREFIX .. '{' .. NAMESPACE .. '/' .. encoded(ref[1]) .. '}:'
  local stored = call('HMGET', base .. 'j:' .. ref[2], 'm', 'k', 'p', 'h', 'r')
  if stored[1] then
    past = past or has_passed(stored[1])
    stored[4] = stored[4] and history_of(base .. 'j:' .. ref[2])
    stored[6] = ARGV[3] == '1' and call('HGET', base .. 'j:' .. ref[2], 'b')
    local _, state = cmsgpack.unpack_one(stored[1])
    stored[7] = state == RUNNING and call('ZSCORE', base .. 'leases', ref[2])
    jobs[index] = stored
  else
    jobs[index] = false
  end
end
-- What was shown as gone or failed must not be there again by a clock that was set back.
if past then
  allow_writes()
  keep_time()
end
return {pack(now), jobs}
