"""--help of every command at the width of a small terminal, all in one process. What it imports is tests/hpc/test_help_imports.py's."""

import importlib.util
import re
from pathlib import Path

import pytest

from hpc.__main__ import COMMANDS
from seresnet.help_text import folded

MODULES = sorted({word for command, _ in COMMANDS for word in command.split() if word.startswith(("hpc.", "seresnet."))})
WORDS = [
    *(f"{module} --help" for module in MODULES),
    *(f"seresnet.checkpoint {word} --help" for word in ("list", "verify", "repair")),
    "hpc.__main__",
]


def said(words: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    module, *arguments = words.split()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", [module, *arguments])
    try:
        importlib.import_module(module).main()
    except SystemExit as left:
        assert left.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", WORDS)
def test_help_fits_80_columns(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(words, 80, monkeypatch, capsys)
    assert [line for line in text.splitlines() if len(line) > 80] == [] and "python -m" in text


@pytest.mark.parametrize("words", WORDS)
def test_no_word_of_a_help_depends_on_the_width_and_no_example_is_folded(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow, wide = (said(words, columns, monkeypatch, capsys) for columns in (80, 300))
    assert sorted(re.findall(r"[\w.-]+", narrow)) == sorted(re.findall(r"[\w.-]+", wide))
    examples = [line for line in wide.splitlines() if line.startswith("  python -m")]
    assert [line for line in narrow.splitlines() if line.startswith("  python -m")] == examples


#: What they print is a log, which must not stop them; the mirror leaves by itself (ADR 9).
LOGGING = {"hpc.supervisor", "hpc.mirror", "seresnet.train"}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in LOGGING])
def test_a_command_leaves_by_run_command_which_tells_of_a_full_stdout(module: str) -> None:
    source = importlib.util.find_spec(module)
    assert source is not None and source.origin is not None
    assert Path(source.origin).read_text().endswith('if __name__ == "__main__":\n    run_command(main)\n')


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("one two three four", ["one two three", "four"]),
        ("  one two three four", ["  one two", "    three", "    four"]),
        ("averyveryverylongword and", ["averyveryverylongword", "and"]),
        ("", [""]),
    ],
)
def test_a_line_is_a_paragraph_and_an_indented_one_hangs(line: str, lines: list[str]) -> None:
    assert folded(line, 13).split("\n") == lines


def test_a_list_of_words_and_meanings_keeps_its_second_column() -> None:
    assert folded("  name   " + "word " * 8, 45).split("\n") == ["  name   " + "word " * 6 + "word", "         word"]
