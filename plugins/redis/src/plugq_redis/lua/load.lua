-- Reads registers. ARGV[2]: the keys.

tell_time()
allow_writes()
local found = {}
for index, key in ipairs(cmsgpack.unpack(ARGV[2])) do
  local _, stored = read_register(key)
  found[index] = stored
end
keep_time()
return {pack(now), found}
