-- Takes the time of another node along, and returns the latest.

tell_time()
allow_writes()
keep_time()
return pack(now)
