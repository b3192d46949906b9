"""What a user of the server has to be allowed, as rules of Redis's access control lists."""

from __future__ import annotations

from urllib.parse import quote

#: The commands of the scripts; the start asks whether each may be used.
_IN_SCRIPTS = (
    "del get incr set time",
    "hdel hexists hget hgetall hincrby hkeys hlen hmget hscan hset",
    "zadd zcard zcount zrange zrangebylex zrangebyscore zrank zrem zremrangebyrank",
    "zremrangebyscore zrevrangebyscore zscore",
    "publish pubsub sadd smembers srem",
)
#: Those that are sent by themselves. Without the right to CONFIG GET the start can not tell how
#: often the server syncs its file.
_BY_THEMSELVES = (
    "evalsha script|load subscribe unsubscribe ping select info config|get",
    "cluster|slots",
)


def access_rules(namespace: str = "default", prefix: str = "plugq:") -> str:
    """Return the rules for ``ACL SETUSER`` that let a user work on one namespace and no other.

    What is still to be added is ``on`` and the password. Every process that opens the storage needs
    them all, whatever its role: it is the same scripts that submit, run and look.
    """
    name = quote(namespace, safe="")
    keys = f"~{prefix}{{{name}}}:* ~{prefix}{{{name}/*"
    channels = f"resetchannels &{prefix}{name}:*"
    commands = " ".join((*_IN_SCRIPTS, *_BY_THEMSELVES)).split()
    return f"{keys} {channels} -@all " + " ".join(f"+{command}" for command in commands)
