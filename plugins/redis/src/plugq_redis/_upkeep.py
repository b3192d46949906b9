"""What whoever runs a server may ask of the storage: what is kept, and what a user may need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.protocols.upkeep import Fact
from plugq_redis._access import access_rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq_redis._check import Facts


def facts_of(found: Facts, namespace: str, prefix: str) -> Sequence[Fact]:
    """Return what a server promises and needs; the promise is the line that the start logs."""
    kind = ", as a cluster" if found.cluster else ""
    facts = [
        Fact(name="server", text=f"{found.server} {found.release}{kind}"),
        Fact(name="keeps", text=found.promise, warning=not found.appendonly),
    ]
    if found.replicas:
        text = "a failover to a replica loses what that had not received yet"
        facts.append(Fact(name="failover", text=text))
    evicts = found.policy.startswith("allkeys")
    if evicts:
        text = f"jobs are thrown away when it is full (maxmemory-policy {found.policy})"
    elif found.limited:
        text = f"new jobs are refused when it is full (maxmemory-policy {found.policy})"
    else:
        text = "the server sets no limit (maxmemory 0)"
    facts.append(Fact(name="memory", text=text, warning=evicts))
    where = " on every node" if found.cluster else ""
    rules = access_rules(namespace, prefix)
    text = f"clients and workers alike{where}: ACL SETUSER <user> on ><password> {rules}"
    facts.append(Fact(name="access", text=text))
    return facts
