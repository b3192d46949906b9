-- Returns a part of a page: jobs of one queue, the newest first. ARGV[2]: the queue, the sequence
-- before which to begin, the most jobs to return, the most to look at, and the filters.

tell_time()
local name, before, limit, most, allowed, task, batch, since, till = unpack_all(ARGV[2])
local base = PREFIX .. '{' .. NAMESPACE .. '/' .. encoded(name) .. '}:'
local states = {}
for _, state in ipairs(allowed) do states[state] = true end
local entries = call('ZREVRANGEBYSCORE', batch and base .. 'b:' .. batch or base .. 'all',
  before and '(' .. string.format('%.0f', before) or '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, most)
local jobs, last, past = {}, nil, false
local q = {name = name, job = base .. 'j:'}
for index = 1, #entries, 2 do
  if #jobs >= limit then break end
  last = tonumber(entries[index + 1])
  local id = entries[index]
  local stored = call('HMGET', q.job .. id, 'm', 'k', 'p', 'h')
  if stored[1] then
    local j = decode(q, id, stored[1], stored[2])
    past = past or is_overdue(j) or is_expired(j)
    local state = is_overdue(j) and FAILED or j.state
    if not is_expired(j) and (#allowed == 0 or states[state]) and (not task or j.task == task)
      and (not since or j.submitted >= since) and (not till or j.submitted < till) then
      stored[4] = stored[4] and history_of(q.job .. id)
      stored[5] = j.state == RUNNING and call('ZSCORE', base .. 'leases', id)
      stored[6] = id
      stored[7] = call('HEXISTS', q.job .. id, 'r')
      jobs[#jobs + 1] = stored
    end
  end
  if index + 1 == #entries and #entries < 2 * most then last = nil end
end
if past then
  allow_writes()
  keep_time()
end
return {pack(now, last), jobs}
