-- Returns the counts of batches. ARGV[2]: their names and, in a cluster, the queue.

tell_time()
local names, name = unpack_all(ARGV[2])
local shared = name and open(name).base or COMMON
local found = {}
for index, each in ipairs(names) do
  found[index] = call('HGET', shared .. 'batches', each)
end
allow_writes()
keep_time()
return {pack(now), found}
