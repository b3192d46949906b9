"""PostgreSQL storage for plugq: durable jobs that processes of many hosts share."""

from plugq_postgres._migrations import migration_sql
from plugq_postgres._options import PostgresOptions
from plugq_postgres._storage import PostgresStorage
from plugq_postgres._upkeep import grants

__all__ = ["PostgresOptions", "PostgresStorage", "grants", "migration_sql"]
