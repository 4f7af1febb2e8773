"""`text2seg app`: the browser app."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import tyro

from text2seg.app.settings import AppSettings
from text2seg.cli.common import check_models, load_models
from text2seg.cli.terminal import log_to_terminal, say, waiting
from text2seg.config import ModelSettings, Settings
from text2seg.errors import SettingsError

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class App:
    """Open the browser app to segment images, label a folder and explain CLIP.

    Example: text2seg app --open-browser
    """

    app: tyro.conf.UseAppendAction[AppSettings] = field(default_factory=AppSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        self.app.listening().close()  # a used port is found before the models load
        check_models(self.model)
        try:
            with waiting("starting the app"):
                from text2seg.app.serve import serve
        except ModuleNotFoundError as error:
            raise SettingsError(
                f'the app needs {error.name}, which is not installed: pip install "text2seg[app]"'
            ) from error
        from text2seg.app.model_pool import ModelPool

        def load(name: str) -> Text2Seg:
            pair: Any = name
            return load_models(replace(self.model, model=pair, clip=None, sam=None), Settings())

        model_pool = ModelPool(load_models(self.model, Settings()), self.app, load)
        serve(model_pool, opened=lambda url: say(f"text2seg: open {url} (Ctrl-C stops it)", flush=True))
        return 0
