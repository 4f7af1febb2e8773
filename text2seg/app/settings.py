"""How the app is served, and what it lets a visitor do."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from text2seg.errors import SettingsError
from text2seg.io.files import is_dir

PASSWORD_VARIABLE = "TEXT2SEG_PASSWORD"
AT_LEAST_ONE = ("upload_mb", "megapixels", "folder_images", "folder_mb", "workers", "waiting")


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Where the app listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int | None = None
    """Port to listen on; 0 is any that is free. Default: the first free one from 7860 on."""
    public_url: str = ""
    """Where visitors find the app if a proxy stands before it, as https://example.org/text2seg."""
    auth: tuple[str, ...] = ()
    """NAME:PASSWORD that visitors must give; repeat for more. The password of a NAME alone is what the environment
    variable TEXT2SEG_PASSWORD holds."""
    root: Path | None = None
    """A folder whose folders may be labelled in place. Default: visitors label what they upload."""
    manage_models: Literal["alone", "always", "never"] = "alone"
    """When visitors may download weights and change the models, for all. alone: where nobody but you gets in, that is
    on a loopback address with no proxy before it."""
    upload_mb: int = 50
    """Largest picture file, in megabytes."""
    megapixels: int = 50
    """Largest picture, in millions of pixels."""
    folder_images: int = 2000
    """Most pictures in one folder job."""
    folder_mb: int = 500
    """Most megabytes of them, or of the zip file they come in."""
    cache_mb: int = 1024
    """Memory for the embeddings of the pictures last looked at."""
    workers: int = 2
    """How many visitors the models serve at the same time; the others wait for their turn."""
    waiting: int = 100
    """How many may wait; more are sent away."""
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
        parts = urlsplit(self.public_url)
        if self.public_url and not (parts.scheme in ("http", "https") and parts.hostname):
            raise SettingsError(f"public_url must be like https://example.org/text2seg, got {self.public_url!r}")
        if self.root is not None and not is_dir(self.root, SettingsError):
            raise SettingsError(f"root must be a folder that is there, got {self.root}")
        self.users()

    def users(self) -> dict[str, str]:
        """Passwords by name.

        Raises:
            SettingsError: a name or a password is empty, or a name is there twice.
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
                raise SettingsError(f"auth has the name {name!r} twice; give each visitor their own")
            users[name] = password
        return users

    @property
    def is_private(self) -> bool:
        """Whether only people at this machine get in."""
        return not self.public_url and is_loopback(self.host)

    @property
    def may_manage_models(self) -> bool:
        return self.manage_models == "always" or (self.manage_models == "alone" and self.is_private)


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is that of this machine for itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
