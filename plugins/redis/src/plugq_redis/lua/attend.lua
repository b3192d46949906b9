-- Takes the time of another node along, and returns the latest.

tell_time()
keep_time()
return pack(now)
