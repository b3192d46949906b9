-- Returns which sequences a queue has. ARGV[2]: the queue and the sequences.

local name, sequences = unpack_all(ARGV[2])
local all, taken = open(name).all, {}
for _, sequence in ipairs(sequences) do
  if call('ZCOUNT', all, sequence, sequence) > 0 then taken[#taken + 1] = sequence end
end
return pack(taken)
