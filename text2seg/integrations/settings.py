"""Flags of the servers for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from text2seg.app.settings import is_loopback, is_web_address
from text2seg.errors import SettingsError
from text2seg.io.files import check_is_dir

KEY_VARIABLE = "LABEL_STUDIO_API_KEY"


@dataclass(frozen=True, slots=True)
class LabelStudioSettings:
    """Where the backend listens, and where the images of tasks come from."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 allows other machines, and needs --auth."""
    port: int = 9090
    """Port to listen on; 0 means any free port."""
    auth: str = ""
    """NAME:PASSWORD that Label Studio must give (basic authentication of the backend's form). Without it, Label Studio
    must call the backend localhost, by a name of this machine, or by a numeric address."""
    label_studio: str = "http://localhost:8080"
    """Address of Label Studio. Images are fetched from there only. Its API key is the environment variable
    LABEL_STUDIO_API_KEY; without it, the key that Label Studio sends when it connects."""
    images: Path | None = None
    """Folder of images for tasks with local files (/data/local-files/?d=NAME), read without Label Studio."""

    def __post_init__(self) -> None:
        if self.auth and not all(self.auth.partition(":")[::2]):
            raise SettingsError("auth must be NAME:PASSWORD")
        if not self.auth and not is_loopback(self.host):
            raise SettingsError(f"{self.host} can be reached from other machines; give --auth NAME:PASSWORD")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port must be a number from 0 to 65535, got {self.port}")
        if not is_web_address(self.label_studio):
            raise SettingsError(f"label studio must be like http://localhost:8080, got {self.label_studio!r}")
        if self.images is not None:
            check_is_dir(self.images, SettingsError, flag="--images")
