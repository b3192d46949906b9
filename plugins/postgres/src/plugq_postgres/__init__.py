"""PostgreSQL storage for plugq: durable jobs that processes of many hosts share."""

from plugq_postgres._access import grants
from plugq_postgres._migrations import migration_sql
from plugq_postgres._options import PostgresOptions
from plugq_postgres._storage import PostgresStorage

__all__ = ["PostgresOptions", "PostgresStorage", "grants", "migration_sql"]
