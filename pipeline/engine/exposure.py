"""Who reaches a Ray cluster can run code on all of its machines; a token keeps strangers out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

__all__ = ["is_loopback", "warning"]


def warning(address: str | None, environment: Mapping[str, str]) -> str:
    """What to know before work is sent to a cluster that others may reach; "" if they may not.

    Args:
        address: `engine.address`; None means that of `RAY_ADDRESS`, else a Ray of one's own.
        environment: environment variables.
    """
    address = address or environment.get("RAY_ADDRESS")
    if not address or is_loopback(address) or environment.get("RAY_AUTH_MODE") == "token":
        return ""
    return (
        f"the Ray cluster at {address} is beyond this machine and RAY_AUTH_MODE is not 'token': "
        "anyone who reaches it can run code on it (docs/security.md)"
    )


def is_loopback(address: str) -> bool:
    """Whether an address of Ray (`host:port`, `ray://host:port`, "auto") is of this machine."""
    if address in ("auto", "local"):
        return True
    host = address.partition("://")[2] or address
    host = host.rpartition(":")[0].strip("[]") or host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
