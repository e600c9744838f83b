"""http(s) media: of hosts that were allowed by name, at public addresses only, looked at before each connection."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urljoin, urlsplit

from affectgpt.core.errors import DataError

_REDIRECTS = 3
_SECONDS = 30.0  # for all of it
_CHUNK = 1 << 16


class TooLargeError(DataError):
    """Media are larger than the server takes."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not this machine, its network, a cloud's metadata, …"""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or is_public(str(inner)))


def fetch(url: str, *, hosts: Sequence[str], largest: int) -> Iterator[bytes]:
    """The content behind an http(s) URL, part by part. Raises DataError: a host that is not allowed or not public,
    also behind a redirect; another status than 200; more than ``largest`` bytes; too slow.

    The name is resolved once and the connection made to that very address, so that a name cannot point elsewhere in
    between. No proxy, no cookies, no credentials.
    """
    import httpx2

    end = time.monotonic() + _SECONDS
    with httpx2.Client(trust_env=False, follow_redirects=False, timeout=10.0) as client:
        for _ in range(_REDIRECTS + 1):
            request, headers, extensions = _checked(url, hosts)
            try:
                with client.stream("GET", request, headers=headers, extensions=extensions) as response:
                    if response.is_redirect:
                        url = urljoin(url, response.headers.get("location", ""))
                        continue
                    if response.status_code != 200:
                        raise DataError(f"the media host answered with status {response.status_code}")
                    yield from _content(response.iter_raw(_CHUNK), largest=largest, end=end)
                    return
            except httpx2.HTTPError as error:
                raise DataError(f"the media host cannot be read ({type(error).__name__})") from error
    raise DataError(f"the media host redirects more than {_REDIRECTS} times")


def _checked(url: str, hosts: Sequence[str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """The URL with a public address in place of its host, and what carries the host's name."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise DataError("the media URL is not valid") from None
    if parts.scheme not in ("http", "https") or parts.username is not None:
        raise DataError("the media URL, or one that it redirects to, is not a plain http(s) URL")
    if host not in hosts:
        raise DataError(
            "http(s) media are taken from hosts only that the server's operator allows; send the content as a data: URL"
        )
    try:
        found = socket.getaddrinfo(host, port or parts.scheme, type=socket.SOCK_STREAM)
    except OSError:
        raise DataError("the media host is not known") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise DataError("the media host has no public address; media are fetched from the public internet only")
    address = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    place = address if port is None else f"{address}:{port}"
    name = host if port is None else f"{host}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": name, "Accept-Encoding": "identity", "User-Agent": "affectgpt"}
    return f"{parts.scheme}://{place}{path}", headers, {"sni_hostname": host}


def _content(chunks: Iterator[bytes], *, largest: int, end: float) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > largest:
            raise TooLargeError(f"the media are larger than {largest / 2**20:.0f} MB")
        if time.monotonic() > end:
            raise DataError(f"the media host took more than {_SECONDS:.0f} s")
        yield chunk
