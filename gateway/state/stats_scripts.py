"""The Lua of `stats_store.py`. All keys of one script share the model's hash tag, and so a cluster slot."""

from __future__ import annotations

# Ids from `first` to `last` in ARGV. Acknowledging twice is harmless, counting twice is not, hence the look before.
_PENDING = """
local function is_pending(stream, first, last)
  for i = first, last do
    local id = ARGV[i]
    if #redis.call('XPENDING', stream, ARGV[1], id, id, 1, ARGV[2]) == 0 then return false end
  end
  return true
end
local function acknowledge(stream, first, last)
  for i = first, last do redis.call('XACK', stream, ARGV[1], ARGV[i]) end
end
"""

# KEYS predictions, window, counters; ARGV group, consumer, base, fresh, now, ttl, rows, merged, delta, id...
COMMIT_WINDOW = (
    _PENDING
    + """
if not is_pending(KEYS[1], 10, #ARGV) then return false end
local window, part = redis.call('HGET', KEYS[2], 'id'), ARGV[9]
if not window then
  window = ARGV[4]
  redis.call('HSET', KEYS[2], 'id', window, 'opened', ARGV[5])
elseif window == ARGV[3] then
  part = ARGV[8]
end
redis.call('HSET', KEYS[2], 'sketch:' .. ARGV[2], part)
local rows = redis.call('HINCRBY', KEYS[2], 'rows', ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[6])
acknowledge(KEYS[1], 10, #ARGV)
redis.call('HINCRBY', KEYS[3], 'entries', #ARGV - 9)
redis.call('HINCRBY', KEYS[3], 'rows', ARGV[7])
return {window, redis.call('HGET', KEYS[2], 'opened'), rows}
"""
)

# KEYS window, verdicts, verdict, counters; ARGV window id, rows, verdict, cap, ttl
CLOSE_WINDOW = """
local seen = redis.call('HMGET', KEYS[1], 'id', 'rows')
if seen[1] ~= ARGV[1] or seen[2] ~= ARGV[2] then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'verdict', ARGV[3])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[5])
redis.call('DEL', KEYS[1])
redis.call('HINCRBY', KEYS[4], 'windows_closed', 1)
return 1
"""

# KEYS verdicts, verdict; ARGV verdict, status, cap, ttl
ANNOUNCE = """
local latest = redis.call('GET', KEYS[2])
if latest and cjson.decode(latest).status == ARGV[2] then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'verdict', ARGV[1])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[4])
return 1
"""

# KEYS predictions, counters; ARGV group, consumer, rows, id...
SKIP = (
    _PENDING
    + """
if not is_pending(KEYS[1], 4, #ARGV) then return false end
acknowledge(KEYS[1], 4, #ARGV)
redis.call('HINCRBY', KEYS[2], 'entries', #ARGV - 3)
redis.call('HINCRBY', KEYS[2], 'rows_unwatched', ARGV[3])
return 1
"""
)

# KEYS feedback, performance, counters; ARGV group, consumer, ttl, number of ids, id..., field, amount, ...
COMMIT_FEEDBACK = (
    _PENDING
    + """
local last = 4 + ARGV[4]
if not is_pending(KEYS[1], 5, last) then return false end
for i = last + 1, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
acknowledge(KEYS[1], 5, last)
redis.call('HINCRBY', KEYS[3], 'labels', ARGV[4])
return 1
"""
)

# KEYS stream, dead letters, counters; ARGV group, id, cap, reason, field, value, ...
DEAD_LETTER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*',
  'stream', KEYS[1], 'id', ARGV[2], 'reason', ARGV[4], unpack(ARGV, 5))
redis.call('HINCRBY', KEYS[3], 'dead_letters', 1)
return 1
"""
