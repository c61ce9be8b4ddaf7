"""What a log in Redis is made of, and the scripts that write it.

| key                          | type   | holds                                                                     |
|------------------------------|--------|---------------------------------------------------------------------------|
| `<prefix>:log`               | hash   | the settings, the epoch, and per stream: the last offset, what was cut    |
| `<prefix>:log:<stream>`      | stream | entries with the fields `s` (subject), `p` (payload), `n` (epoch-offset)  |
| `<prefix>:log:from:<origin>` | string | the highest number of one who publishes with numbers; expires             |

An entry's id is Redis' own and carries the time. It has holes, so an entry also carries its offset, which the script
that appends counts: whatever was trimmed before it was read is seen, and counted. The epoch stands in the hash. When
the hash is gone, the log is gone, and the first to notice gives it another epoch.

Nothing is left behind: every live node renews the expiry of the keys with each heartbeat.
"""

from hashlib import sha1

OPEN = b"""
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'retention', ARGV[2], 'max_bytes', ARGV[3], 'streams', ARGV[4])
end
if not epoch or epoch == ARGV[5] then
  local streams = tonumber(redis.call('HGET', KEYS[1], 'streams'))
  for i = 1, math.min(#KEYS - 1, streams) do
    local last = redis.call('XREVRANGE', KEYS[i + 1], '+', '-', 'COUNT', 1)
    redis.call('HSET', KEYS[1], 'since:' .. (i - 1), last[1] and last[1][1] or '0-0')
    if epoch then redis.call('HDEL', KEYS[1], 'n:' .. epoch .. ':' .. (i - 1)) end
  end
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local found = {epoch, redis.call('HMGET', KEYS[1], 'retention', 'max_bytes', 'streams')}
for i = 1, #KEYS - 1 do
  local last = redis.call('XREVRANGE', KEYS[i + 1], '+', '-', 'COUNT', 1)
  local at = redis.call('HMGET', KEYS[1], 'n:' .. epoch .. ':' .. (i - 1), 'since:' .. (i - 1))
  found[i + 2] = {at[1] or '0', last[1] and last[1][1] or '0-0', at[2] or '0-0'}
end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[6]) end
return found
"""
"""KEYS: the hash, each stream. ARGV: an epoch for a new life, the settings, the epoch to replace, the expiry in ms.

Returns the epoch, the settings, and for each stream the last offset, the last id, and the id before this life.
"""

APPEND = b"""
if ARGV[5] then
  local highest = redis.call('GET', KEYS[3])
  if highest and tonumber(ARGV[5]) <= tonumber(highest) then return 0 end
end
local n = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
if n == 1 and redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[2] then
  redis.call('HDEL', KEYS[2], ARGV[1])
  return redis.error_reply('EPOCH the log has another epoch')
end
local id = redis.pcall('XADD', KEYS[1], '*', 's', ARGV[3], 'p', ARGV[4], 'n', ARGV[2] .. '-' .. n)
if type(id) == 'table' then
  redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
  return id
end
if ARGV[5] then redis.call('SET', KEYS[3], ARGV[5], 'PX', 600000) end
if n % 64 == 0 or #ARGV[4] > 65536 then
  local set = redis.call('HMGET', KEYS[2], 'retention', 'max_bytes', 'streams')
  local keep = tonumber(string.match(set[1], '[%d.]+')) * 1000
  local oldest = tonumber(string.match(id, '%d+')) - keep
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', oldest))
  local used, limit = redis.call('MEMORY', 'USAGE', KEYS[1]), tonumber(set[2]) / tonumber(set[3])
  if used > limit then
    redis.call('XTRIM', KEYS[1], 'MAXLEN', math.floor(redis.call('XLEN', KEYS[1]) * limit / used * 0.9))
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
    redis.call('HSET', KEYS[2], 'cut:' .. string.match(ARGV[1], '%d+$'), first[1] and first[1][1] or id)
  end
end
return n
"""
"""KEYS: the stream, the hash, the origin's. ARGV: the counter in the hash, the epoch, subject, payload, the number.

Returns the offset, or 0 when the number is a repeat; EPOCH when the log is not the one it was. Every 64th entry trims
what is older than the retention, and what is too much by the memory that Redis reckons for the stream.
"""

APPEND_SHA = sha1(APPEND, usedforsecurity=False).hexdigest().encode()
