-- Makes all changes, or none if a version is another than expected. ARGV[2]: the changes; then
-- their values.

tell_time()
allow_writes()
local changes = cmsgpack.unpack(ARGV[2])
local done = 1
for _, change in ipairs(changes) do
  if read_register(change[1]) ~= change[2] then done = 0 end
end
if done == 1 then
  for index, change in ipairs(changes) do
    local key, removed, ttl = change[1], change[3], change[4]
    if removed then drop_register(key) else write_register(key, ARGV[index + 2], ttl) end
  end
end
local found = {}
for index, change in ipairs(changes) do
  local _, stored = read_register(change[1])
  found[index] = stored
end
keep_time()
return {pack(now), done, found}
