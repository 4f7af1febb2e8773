"""`text2seg track`: follow things through a video."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import check_models, known_queries, load_models, queries_of
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import INTERRUPTED, PARTLY, exit_status, log_to_terminal, say, say_failures, stop_on_signals
from text2seg.config import ModelSettings, Settings, TrackSettings
from text2seg.io.names import counted

if TYPE_CHECKING:
    from text2seg.video import TrackReport


@dataclass(frozen=True, slots=True)
class Track:
    """Follow what the queries name through a video, and write one COCO file in which each thing has a number.

    With a SAM 2 things are followed by its memory; with other SAMs the segments of each frame are matched with those
    before (docs/video.md). After Ctrl-C the frames that are done are written.

    Example: text2seg track clip.mp4 --query dog --save overlay --output outputs/clip
    """

    video: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="VIDEO|FOLDER", help_behavior_hint="")]]
    """Video file, or folder of frames in the order of the numbers in their names."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to follow; repeat for more (see `segment --query`)."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Queries in one string, separated by commas, semicolons or line breaks."""
    track: TrackSettings = field(default_factory=TrackSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        queries, unknown = known_queries(
            self.model, queries_of(self.query, self.queries, way="give --query at least once"), self.settings
        )
        from text2seg.io.frames import open_frames
        from text2seg.video import check_output, track_video

        check_output(self.video, self.track)
        open_frames(self.video, self.track.every)
        check_models(self.model)
        models = load_models(self.model, self.settings)
        if models.default_presence(self.settings) is None and self.settings.presence.presence is None:
            say("text2seg: so every query starts in the first frame, whether it shows it or not", file=sys.stderr)
        with stop_on_signals() as stop:
            report = track_video(models, self.video, queries, self.track, progress=True, stop=stop)
        say_failures(report.failures, all_in=str(report.dataset), verbose=self.verbose)
        if report.interrupted:
            self._say_stopped(report)
            return INTERRUPTED
        if report.kept_earlier:
            say(
                f"text2seg: {self._fault(report)}, so {report.dataset} is still that of the earlier run. "
                "Mend the video, or choose another --output to keep what can be read",
                file=sys.stderr,
            )
            return PARTLY
        for name, tracks in report.tracks.items():
            count = f"{counted(len(tracks), 'track')}, the first from frame {min(tracks.values(), default=0)}"
            say(f"{name}: {count if tracks else 'not found'}")
        for kind in self.track.save:
            say(f"{kind}: {self.track.output / ('overlay.mp4' if kind == 'overlay' else 'frames')}")
        say(f"COCO file: {report.dataset}")
        if report.cut_off or report.ended_early:
            say(f"text2seg: {self._fault(report)}; what could be read is written", file=sys.stderr)
            return PARTLY
        return exit_status(report.frames, unknown + len(report.failures))

    def _fault(self, report: TrackReport) -> str:
        if report.ended_early:
            return f"the frames of {self.video} have different sizes"
        return f"{self.video} may be damaged: only {report.frames} of about {report.total} frames could be read"

    def _say_stopped(self, report: TrackReport) -> None:
        """Print how much was done, and how to begin again."""
        of = f" of {report.total}" if report.total else ""
        kept = f"{report.dataset} is still that of the earlier run" if report.kept_earlier else f"in {report.dataset}"
        say(
            f"text2seg: stopped with {report.frames}{of} frames done, {kept}. "
            "The same command with --overwrite begins again",
            file=sys.stderr,
        )
