-- Returns the registers whose key starts with a prefix. ARGV[2]: the prefix.

tell_time()
local prefix = ARGV[2]
local found = {}
local keys
if prefix == '' then
  keys = call('ZRANGE', KEYS_, 0, -1)
else
  keys = call('ZRANGEBYLEX', KEYS_, '[' .. prefix, '(' .. prefix .. '\255')
end
for _, key in ipairs(keys) do
  local _, stored = read_register(key)
  if stored then
    found[#found + 1] = key
    found[#found + 1] = stored
  end
end
return found
