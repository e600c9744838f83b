"""What a server is started with, and what may not be started."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from affectgpt.core.errors import ConfigError
from affectgpt.media.limits import MediaLimits

TOY = 20_000_000  # parameters up to which a model is a toy


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens, whom it lets in, and how much it takes. Raises ConfigError for what is not safe."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()  # names by which the server may be called, besides its address
    media_root: Path | None = None  # file: URLs are taken below it
    work_dir: Path | None = None  # private folders of requests; default: below the system's folder for such files
    media: MediaLimits = field(default_factory=MediaLimits)
    megabytes: float = 64.0  # of one request's media
    memory_megabytes: float = 1024.0  # of all request bodies that are being read
    waiting: int = 64  # requests whose body is there and that have no answer; one more gets 429
    max_choices: int = 8  # n
    batch_wait: float = 0.25  # seconds that a batch waits for requests that are still being read
    max_batch: int | None = None  # rows; None: as many as the memory takes
    read_timeout: float = 30.0  # seconds between two parts of a body, and for what is sent to be taken
    body_timeout: float = 120.0  # seconds for a whole body
    request_timeout: float = 300.0  # seconds for an answer
    decode_timeout: float = 30.0  # seconds for one decoding step of a file
    decode_memory: int = 8 << 30  # bytes of address space of a decoding helper
    drain_timeout: float = 60.0  # seconds that running answers have after SIGTERM

    def __post_init__(self) -> None:
        if not self.is_loopback and self.api_key is None and not self.no_auth:
            raise ConfigError(
                f"--host {self.host}: other machines could use this server. Give a key (--api-key-env NAME, the name "
                "of an environment variable that holds it), or --no-auth where everybody who reaches it may"
            )
        if self.api_key is not None and (self.no_auth or len(self.api_key) < 8):
            raise ConfigError(
                "--no-auth and --api-key-env exclude each other"
                if self.no_auth
                else "--api-key-env: the key has fewer than 8 characters"
            )
        if self.media_root is not None and not self.media_root.is_dir():
            raise ConfigError(f"--media-root {self.media_root}: no such folder")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def media_bytes(self) -> int:
        """The most bytes of one medium, decoded."""
        return int(self.megabytes * 2**20)

    @property
    def uploads_megabytes(self) -> float:
        """The most megabytes of the page's uploads, those on their way included: eight clips of the largest size."""
        return 8 * self.megabytes + 1

    @property
    def body_bytes(self) -> int:
        """The most bytes of a request's body: its media in base64, and a megabyte of words."""
        return self.media_bytes * 4 // 3 + 2**20
