"""What a storage may offer to those who run it: its facts, and the changes of its layout.

Both protocols are optional. A class satisfies one by having its methods, and ``plugq check`` and
``plugq migrate`` use what they find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a storage promises or needs, said in one line to whoever runs it.

    ``name`` is one word. Three have a meaning for all storages: ``server`` is product and version
    and nothing else, ``keeps`` says which losses an acknowledged job survives, ``access`` what a
    user of the server has to be allowed. ``warning`` says that the storage can do better than it
    is configured to. No text has a secret in it.
    """

    name: str
    text: str
    warning: bool = False


@runtime_checkable
class Explaining(Protocol):
    """A storage that can say what it promises and needs as it is configured now."""

    async def facts(self) -> Sequence[Fact]:
        """Return the facts of a storage that is started; those logged at the start among them.

        Raises:
            Unavailable: they have to be asked for and the server can not be reached.
        """
        ...


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Which version of its layout a store has, 0 for none, and which one the plugin brings."""

    version: int
    newest: int

    @property
    def pending(self) -> bool:
        """Whether migrating would change anything."""
        return self.version < self.newest


@runtime_checkable
class Migrating(Protocol):
    """A storage whose store has a layout that comes in versions, each a step from the one before.

    The methods are called on an instance that is not started.
    """

    def migration_sql(self, since: int = 0) -> str:
        """Return a script that brings a store from version ``since`` to the newest; no I/O."""
        ...

    async def layout(self) -> Layout:
        """Look at the store and change nothing.

        Raises:
            ConfigError: the store belongs to something else, or may not be looked at.
            Unavailable: it can not be reached now.
        """
        ...

    async def migrate(self) -> Layout:
        """Bring the store to the newest version and return what it had before.

        Happens as a whole or not at all, and once where several processes do it at the same time.

        Raises:
            ConfigError: the store belongs to something else, or may not be changed.
            Unavailable: it can not be reached now, or others held it for too long.
        """
        ...


__all__ = ["Explaining", "Fact", "Layout", "Migrating"]
