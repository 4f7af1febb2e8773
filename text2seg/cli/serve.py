"""`text2seg serve`: the models as a server for other tools."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from text2seg.app.settings import listening_socket
from text2seg.cli.common import load_models
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import log_to_terminal, say
from text2seg.config import ModelSettings, Settings
from text2seg.integrations.settings import LabelStudioSettings


@dataclass(frozen=True, slots=True)
class ServeLabelStudio:
    """Serve the models as a machine learning backend of Label Studio.

    Example: text2seg serve label-studio --label-studio http://localhost:8080
    """

    server: tyro.conf.UseAppendAction[LabelStudioSettings] = field(default_factory=LabelStudioSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Print each request, and which models run on which device."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        listening_socket(self.server.host, [self.server.port]).close()  # a used port is found before the models load
        models = load_models(self.model, self.settings)
        from text2seg.integrations.label_studio_server import server

        with server(models, self.server) as listening:
            host, port = listening.server_address[:2]
            say(f"text2seg: backend for Label Studio at http://{host!s}:{port} (Ctrl-C stops it)", flush=True)
            listening.serve_forever()
        return 0
