"""How the app is served, and what it lets a visitor do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Where the app listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int | None = None
    """Port to listen on. Default: the first free one from 7860 on."""
    auth: tuple[str, ...] = ()
    """NAME:PASSWORD that visitors must give; repeat for more."""
    root: Path | None = None
    """A folder whose folders may be labelled in place. Default: visitors label what they upload."""
    upload_mb: int = 50
    """Largest upload, in megabytes."""
    megapixels: int = 50
    """Largest picture."""
    folder_images: int = 2000
    """Most pictures in one folder job."""
    cache_mb: int = 1024
    """Memory for the embeddings of the pictures last looked at."""
    open_browser: bool = False
    """Open the page in the browser."""
