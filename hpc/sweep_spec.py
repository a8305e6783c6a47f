"""What a sweep asks for, as frozen values: what sweep_file reads and sweep expands. Nothing is decided here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpc.paths import WandbSettings
from seresnet.config_file import LoadedConfig


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of the table: runs that differ only by seed. Points of a grid are arms of their own, "se lr=0.05"."""

    name: str
    place: str  # where it is written, "FILE:LINE"
    loaded: LoadedConfig  # with the seed of its first run
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SiteRequest:
    """The site that a sweep asks for, unread: the arguments of hpc.site.read_site."""

    asked: str | Mapping[str, Any] | None = None
    where: str = "site"
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """How runs are put into tasks. concurrent: per_gpu runs at a time on each GPU of the task (on the CPU: per_gpu at a time)."""

    mode: Literal["sequential", "concurrent"] = "sequential"
    runs_per_task: int | None = None  # unset = 1, and in concurrent mode as many as run at a time
    per_gpu: int = 2  # concurrent mode only
    gpus_per_task: int = 1  # concurrent mode only
    auto: bool = False  # `pack: auto`: plain packing, and the plan suggests better from what was measured


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep without faults. texts holds every file that was read, the sweep's own first, by its name in messages."""

    name: str
    path: Path
    texts: Mapping[str, str]
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    pack: PackRequest
    site: SiteRequest
    wandb: WandbSettings
    code_root: Path | None = None  # where the modules of targets lie
    notes: tuple[str, ...] = ()  # what the plan says beside itself
    mail: str | None = None  # who gets one message when the array ends

    @property
    def own_text(self) -> str:
        """The sweep's own file, without overrides and base."""
        return next(iter(self.texts.values()))

    def copy_text(self) -> str:
        """The sweep's own text, then overrides and the base file as comments: what runs/SWEEP/sweep.yaml keeps."""
        own, *others = self.texts.items()
        lines = [own[1].rstrip("\n"), *(f"# override: {text}" for text in self.overrides)]
        for name, text in others:
            lines += [f"# base: {name}", *(f"#   {line}" for line in text.splitlines())]
        return "\n".join(lines) + "\n"
