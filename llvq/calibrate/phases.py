"""The forward loop of a calibration: all videos, once per phase, saved after each of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from llvq.calibrate.configs import Config
from llvq.calibrate.rollout import Video, roll
from llvq.calibrate.statistics import gathered, put_back
from llvq.calibrate.work import Work
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit

# Told (what is being done, how much of it is done, how much there is).
Progress = Callable[[str, int, int], None]


class Counted:
    """Tells how many chunks of `what` are done: from the start, and after each."""

    def __init__(self, tell: Progress, what: str, total: int, done: int = 0) -> None:
        self.tell, self.what, self.total, self.done = tell, what, total, done
        tell(what, done, total)

    def __call__(self) -> None:
        self.done += 1
        self.tell(self.what, self.done, self.total)


class Phases:
    """The forward loop that ModelOpt calls once per phase; saves what is gathered, video by video.

    A phase whose videos are all saved costs nothing when the run is started again.
    """

    def __init__(
        self, config: Config, sized: ModelConfig, videos: list[Video], state: Work, tell: Progress
    ) -> None:
        self.config, self.sized, self.videos = config, sized, videos
        self.state, self.tell = state, tell
        self.phase = 0

    def __call__(self, model: nn.Module) -> None:
        assert isinstance(model, CausalWanDit)
        self.phase += 1
        name = f"phase-{self.phase}"
        saved = self.state.get(name)
        done = int(saved[1]["videos"]) if saved else 0
        if saved:
            put_back(model, saved[0])
        chunks = self.videos[0].chunks
        what = f"{self.config.name}, pass {self.phase} of {self.config.phases}"
        counter = Counted(self.tell, what, len(self.videos) * chunks, done * chunks)
        for index in range(done, len(self.videos)):
            roll(model, self.sized, self.videos[index], done=counter)
            self.state.put(name, gathered(model), videos=str(index + 1))
