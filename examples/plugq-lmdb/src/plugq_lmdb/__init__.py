"""An LMDB storage for plugq: jobs in one folder that all processes of a machine share."""

from plugq_lmdb._options import LmdbOptions
from plugq_lmdb._storage import LmdbStorage

__all__ = ["LmdbOptions", "LmdbStorage"]
