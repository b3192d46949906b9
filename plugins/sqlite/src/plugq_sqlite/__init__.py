"""The SQLite storage of plugq: jobs in one file that all processes of a machine share."""

from plugq_sqlite._options import SqliteOptions
from plugq_sqlite._storage import SqliteStorage

__all__ = ["SqliteOptions", "SqliteStorage"]
