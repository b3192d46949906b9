"""The Redis storage of plugq: durable jobs that processes of many machines share."""

from plugq_redis._access import access_rules
from plugq_redis._options import RedisOptions
from plugq_redis._storage import RedisStorage

__all__ = ["RedisOptions", "RedisStorage", "access_rules"]
