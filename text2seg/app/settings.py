"""Flags of the app, and every limit on an upload or a request. limits.py, guard.py and folder/ enforce the limits."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from text2seg.errors import SettingsError
from text2seg.io.files import is_dir

MEGA = 1_000_000
"""Bytes in a megabyte, pixels in a megapixel."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Image formats that browsers and cameras write. Pillow reads more, but code that few have reviewed is a risk."""
MOST_IMAGES = 50
"""Largest number of images for one run of an explanation tool."""
MOST_FILES = 100
"""Largest number of image files in one request of the HTTP API for a folder job; a zip may hold more."""
MOST_QUERIES = 100
"""Largest number of queries or labels in one request."""
MOST_TEMPLATES = 100
"""Largest number of templates in one request."""
MOST_TILES = 64
"""Largest number of tiles of one image."""
LARGEST_NUMBER = 1024
"""Largest side of CLIP's input for segmentation, in pixels; also the largest whole number of a tool's setting that has
no default."""
LARGEST_EXPLAINED = 512
"""Largest side of CLIP's input in an explanation tool, in pixels. Gradient methods hold the attention of all heads and
blocks, which grows with the fourth power of the side: 0.6 GB for a ViT-B/16 at 512."""
TIMES_USUAL = 20
"""Largest factor between a whole number in a tool's settings and its default."""

FIRST_PORT, PORTS = 7860, 100
PASSWORD_VARIABLE = "TEXT2SEG_PASSWORD"
_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::\d+)?")
AT_LEAST_ONE = ("upload_mb", "megapixels", "folder_images", "folder_mb", "folder_jobs", "workers", "waiting")


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Where the app listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 allows other machines."""
    port: int | None = None
    """Port to listen on; 0 means any free port. Default: the first free port from 7860."""
    public_url: str = ""
    """Public address of the app behind a proxy, such as https://example.org/text2seg."""
    auth: tuple[str, ...] = ()
    """NAME:PASSWORD of a visitor; repeat for more. For NAME alone, the password is the environment variable
    TEXT2SEG_PASSWORD."""
    root: Path | None = None
    """A folder on the server that visitors may label in place, with its subfolders. Default: visitors upload images."""
    manage_models: Literal["alone", "always", "never"] = "alone"
    """When visitors may download weights and switch the models for everyone. alone: only on a loopback address without
    a proxy."""
    upload_mb: int = 50
    """Largest image file, in megabytes."""
    megapixels: int = 50
    """Largest image, in millions of pixels."""
    folder_images: int = 2000
    """Largest number of images in one folder job."""
    folder_mb: int = 500
    """Largest size of the images of a folder job, or of their zip file, in megabytes."""
    folder_jobs: int = 24
    """Largest number of folder jobs of all visitors; a job that nobody opens for 12 hours is removed."""
    cache_mb: int = 1024
    """Memory for the embeddings of recent images, in megabytes."""
    workers: int = 2
    """Number of visitors served at the same time; others wait."""
    waiting: int = 100
    """Number of visitors that may wait; others get an error."""
    open_browser: bool = False
    """Open the page in the browser."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.cache_mb < 0:
            raise SettingsError(f"cache_mb must be 0 or more, got {self.cache_mb}")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise SettingsError(f"port must be a number from 0 to 65535, got {self.port}")
        if self.public_url and not is_web_address(self.public_url):
            raise SettingsError(f"public_url must be like https://example.org/text2seg, got {self.public_url!r}")
        if self.root is not None and not is_dir(self.root, SettingsError):
            raise SettingsError(f"root must be an existing folder, got {self.root}")
        self.users()

    def users(self) -> dict[str, str]:
        """Return the passwords by name.

        Raises:
            SettingsError: a name or a password is empty, or a name is given twice.
        """
        users: dict[str, str] = {}
        for given in self.auth:
            name, colon, password = given.partition(":")
            password = password if colon else os.environ.get(PASSWORD_VARIABLE, "")
            if not name or not password:
                raise SettingsError(
                    f"auth must be NAME:PASSWORD, or NAME with the password in {PASSWORD_VARIABLE}; "
                    f"{'the password of ' + repr(name) if name else 'a name'} is missing"
                )
            if name in users:
                raise SettingsError(f"auth has the name {name!r} twice; use each name once")
            users[name] = password
        return users

    def listening(self) -> socket.socket:
        """Return a listening socket on the port, or on the first free port. Raises `SettingsError`."""
        return listening_socket(self.host, range(FIRST_PORT, FIRST_PORT + PORTS) if self.port is None else [self.port])

    @property
    def is_private(self) -> bool:
        """Whether only users of this machine can reach the app."""
        return not self.public_url and is_loopback(self.host)

    @property
    def may_manage_models(self) -> bool:
        return self.manage_models == "always" or (self.manage_models == "alone" and self.is_private)


def listening_socket(host: str, ports: Sequence[int]) -> socket.socket:
    """Return a listening socket on the first of the ports that is free. Raises `SettingsError` if none is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error
    tried = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise SettingsError(f"cannot listen on {host}, {tried}: {reason}; choose another with --host or --port")


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def local_names() -> frozenset[str]:
    """Return the names of this machine, in lower case."""
    return frozenset({"localhost", socket.gethostname().lower(), socket.getfqdn().lower()})


def is_known_host(header: str, names: Set[str]) -> bool:
    """Return whether the Host header of a request is a numeric address or one of these names, in lower case.

    Another name may be DNS rebinding: a site that points its name to this machine. A numeric address cannot be rebound.
    """
    name = _HOST.fullmatch(header.lower())
    if name is None:
        return False
    try:
        ipaddress.ip_address(name[1].strip("[]"))
    except ValueError:
        return name[1] in names
    return True


def is_web_address(text: str) -> bool:
    """Return whether a text is a URL such as http://localhost:8080."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets, or of a port that is no number
        return False
