-- Returns jobs as they are stored. ARGV[2]: the jobs; ARGV[3]: whether with their bodies.

tell_time()
local jobs = {}
for index, ref in ipairs(cmsgpack.unpack(ARGV[2])) do
  local base = PREFIX .. '{' .. NAMESPACE .. '/' .. encoded(ref[1]) .. '}:'
  local stored = call('HMGET', base .. 'j:' .. ref[2], 'm', 'k', 'p', 'h', 'r')
  if stored[1] then
    stored[4] = stored[4] and history_of(base .. 'j:' .. ref[2])
    stored[6] = ARGV[3] == '1' and call('HGET', base .. 'j:' .. ref[2], 'b')
    local _, state = cmsgpack.unpack_one(stored[1])
    stored[7] = state == RUNNING and call('ZSCORE', base .. 'leases', ref[2])
    jobs[index] = stored
  else
    jobs[index] = false
  end
end
return {pack(now), jobs}
