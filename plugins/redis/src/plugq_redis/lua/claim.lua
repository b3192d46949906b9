-- Grants leases, or shows again those that this claim was granted. ARGV[2]: the claim.

tell_time()
allow_writes()
local request = cmsgpack.unpack(ARGV[2])
local granted = claim(request)
return {close(request[6]), granted}
