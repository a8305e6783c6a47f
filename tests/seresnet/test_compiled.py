"""Compiled regions: the same gradients, exactly the expected graphs, no silent way out, and the same bits with a warm or a cold cache.

Most tests trace without generating code (aot_eager), which needs no C++ compiler; those that do are slow.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_engine import config, engine, splits

from seresnet import compiled
from seresnet.blocks import BasicBlock
from seresnet.errors import CompileError, ConfigError
from seresnet.evaluation import evaluate
from seresnet.world import World

RUN = Path(__file__).with_name("compiled_run.py")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compiling ends with the traced graph."""
    monkeypatch.setattr(compiled, "_backend", lambda deterministic: {"backend": "aot_eager"})
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("SERESNET_COMPILE_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("micro", "graphs"), [(None, 3), (16, 6)])
def test_epochs_with_evaluation_make_one_graph_for_each_distinct_block_and_mode(micro: int | None, graphs: int) -> None:
    ours, plain = engine(config(micro, compile=True)), engine(config(micro))
    for _ in range(2 * ours.steps_per_epoch):  # 70 images in batches of 32, 32 and 6: the last one runs eagerly
        ours.train_step()
        plain.train_step()
    assert evaluate(ours, splits(ours.config).test) is not None
    assert compiled.graphs_made() == graphs, "stem and two blocks; with two micro-batches each with and without running statistics"
    for (name, found), expected in zip(ours.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.usefixtures("traced")
def test_blocks_of_one_form_share_one_graph() -> None:
    model = torch.nn.Sequential(*(BasicBlock(4, 4, 1, None) for _ in range(4)))
    for region in compiled.regions(model):
        region.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    model(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    assert compiled.graphs_made() == 1


@pytest.mark.usefixtures("traced")
def test_a_block_that_no_graph_can_hold_is_an_error_and_never_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = engine(config(compile=True))
    written = BasicBlock.forward

    def broken(self: BasicBlock, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return written(self, x)

    monkeypatch.setattr(BasicBlock, "forward", broken)
    with pytest.raises(ConfigError, match=r"train\.compile: the network could not be compiled: .* Or set train\.compile: false"):
        ours.train_step()


@pytest.mark.usefixtures("traced")
def test_more_graphs_than_there_can_be_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = engine(config(compile=True))
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(ConfigError, match="could not be compiled: FailOnRecompileLimitHit"):
        ours.train_step()


@pytest.mark.parametrize(("device", "needs"), [("cpu", r"a C\+\+ compiler on the CPU"), ("cuda", "a C compiler|Triton")])
def test_a_missing_compiler_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch, device: str, needs: str) -> None:
    for name, value in (("PATH", "/nowhere"), ("CXX", ""), ("CC", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"train\.compile: true needs ({needs}).* Or set train\.compile: false"):
        compiled.check_compiler(torch.device(device))


def failed_with(cause: BaseException, text: str = "C++ compile error") -> BaseException:
    try:
        try:
            raise cause
        except BaseException as error:
            raise torch._inductor.exc.CppCompileError(["g++"], text) from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "text", "kind"),
    [
        (subprocess.CalledProcessError(-15, "g++"), "", RuntimeError),
        (subprocess.CalledProcessError(1, "g++"), "g++: fatal error: Killed signal terminated program cc1plus", RuntimeError),
        (subprocess.CalledProcessError(1, "g++"), "/tmp/x.s: No space left on device", RuntimeError),
        (OSError(28, "No space left on device"), "", RuntimeError),
        (subprocess.CalledProcessError(1, "g++"), "error: expected ';'", CompileError),
    ],
)
def test_a_compiler_that_the_machine_ended_is_no_error_of_the_user(cause: BaseException, text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as found, compiled.explained():
        raise failed_with(cause, text)
    assert found.type is kind, found.value


def test_ranks_with_other_graphs_have_other_archives_and_each_is_kept_once_on_a_node() -> None:
    def world(rank: int, local: int, size: int) -> World:
        return World(rank=rank, local_rank=local, size=size, device=torch.device("cpu"))

    alone, pair = config(16, compile=True), [compiled._role(config(16, compile=True), world(rank, rank, 2)) for rank in (0, 1)]
    assert pair[0] != pair[1] and compiled._role(alone, world(0, 0, 1))["keeps_statistics"], pair
    kept = [(rank, local) for rank, local in [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)] if compiled.keeps_archive(world(rank, local, 5))]
    assert kept == [(0, 0), (1, 1), (3, 0)]


def ranks(size: int, shelf: Path, *arguments: object) -> list[dict[str, Any]]:
    """Run compiled_run.py as so many ranks; what each printed."""
    started = []
    (shelf / "temp").mkdir(exist_ok=True)
    meeting = f"file://{shelf / f'meeting-{len(list(shelf.iterdir()))}'}"
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "SERESNET_INIT_METHOD": meeting}
        env |= {"SERESNET_COMPILE_CACHE": str(shelf), "TMPDIR": str(shelf / "temp"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(RUN), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    texts = [process.communicate(timeout=900)[0] for process in started]
    lines = [[line for line in text.splitlines() if line.startswith("RESULT ")] for text in texts]
    assert all(lines), texts
    return [json.loads(found[-1].removeprefix("RESULT ")) for found in lines]


@pytest.mark.slow
def test_two_compiled_ranks_that_resume_have_the_same_bits(tmp_path: Path) -> None:
    whole = ranks(2, tmp_path, 6, "--aot", "--save", tmp_path / "state.pt", "--save-at", 4)[0]
    resumed = ranks(2, tmp_path, 2, "--aot", "--load", tmp_path / "state.pt")[0]
    assert resumed["digest"] == whole["digest"], (resumed, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_cold_warm_and_damaged_caches_give_the_same_bits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    is_nightly = request.config.getoption("--nightly")
    some = () if is_nightly else ("--one-pass",)
    cold, warm = ranks(1, tmp_path, 4, *some)[0], ranks(1, tmp_path, 4, *some)[0]
    assert ([cold["warm"], warm["warm"]], cold["digest"]) == ([False, True], warm["digest"])
    if not is_nightly:
        return  # compiling once more takes a minute; that a damaged archive is not read is test_compile_cache's
    (archive,) = tmp_path.rglob("*.tar")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    damaged = ranks(1, tmp_path, 4)[0]
    assert [run["warm"] for run in (cold, warm, damaged)] == [False, True, False]
    assert cold["digest"] == warm["digest"] == damaged["digest"]
    assert list((tmp_path / "temp").iterdir()) == []
