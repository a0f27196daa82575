"""What the documents name is there: links, files of the project, commands and their options; and what --help shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lowrank_export.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
FOLDERS = ("benchmarks", "converter", "docs", "exporters", "runtime_tests", "tests")
FILES = [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
LLAMA_CPP = {"--kl-divergence", "--kl-divergence-base", "--tensor-type"}
TORCHRUN = {"--max-restarts"}


def text(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code(document: Path) -> str:
    """Code blocks and code spans, each ending with an empty line; a command is one line."""
    blocks = re.split(r"^```.*\n", text(document), flags=re.MULTILINE)
    indented = [line[4:] for line in "\n".join(blocks[::2]).splitlines() if line.startswith("    ")]
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", "\n".join(blocks[::2]))
    found = [*blocks[1::2], *(span.replace("\n", " ") for span in spans), "\n".join(indented)]
    return re.sub(r"\\\n\s*", " ", "\n\n".join(found))


@cache
def anchors(document: Path) -> frozenset[str]:
    """As GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", text(document), flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@cache
def options() -> dict[str, frozenset[str]]:
    """Command -> its options; "" is the main command."""
    found = {}

    def look(name: str, command: object) -> None:
        found[name] = frozenset(word for option in command.params for word in (*option.opts, *option.secondary_opts))
        for verb, inner in getattr(command, "commands", {}).items():
            look(f"{name} {verb}".strip(), inner)

    look("", typer.main.get_command(app))
    return found


def commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Verb and words of every call of the command line in a document."""
    for call in re.findall(r"(?:lowrank-export|-m lowrank_export)(?= )([^\n#|)`\"]*)", code(document)):
        words = call.split()
        verb = " ".join(words[:2]) if words[:1] == ["runtime"] else words[0] if words else ""
        yield ("", words) if verb.startswith("-") else (verb, words[len(verb.split()) :])


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(document)):
        path, _, anchor = link.partition("#")
        target = (ROOT / document.parent / path).resolve() if path else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT.resolve())), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_that_are_named_are_there(document: Path) -> None:
    for name in re.findall(r"[\w/.-]+\.py\b", text(document)):
        assert (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in FILES), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_have_the_options_that_are_shown(document: Path) -> None:
    for verb, words in commands(document):
        assert verb in options(), verb
        unknown = {word.split("=")[0] for word in words if word.startswith("-")} - options()[verb]
        assert not unknown, f"{verb} {unknown}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_benchmarks_have_the_options_that_are_shown(document: Path) -> None:
    shared = (ROOT / "benchmarks" / "random_llama.py").read_text(encoding="utf-8")
    for name, words in re.findall(r"benchmarks/(\w+\.py)([^\n#|)`]*)", code(document)):
        source = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
        source += shared if "speed_options" in source else ""
        for option in re.findall(r" --(?:no-)?([\w-]+)", words):
            assert f'"--{option}"' in source, f"{name} {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_options_alone_are_options_of_something(document: Path) -> None:
    ours = {option for known in options().values() for option in known} | LLAMA_CPP | TORCHRUN
    programs = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "runtime_tests" / "pytest_plugin.py"]
    sources = [path.read_text(encoding="utf-8") for path in programs]
    for option in re.findall(r"^(--[\w-]+)", code(document), flags=re.MULTILINE):
        assert option in ours or any(f'"{option}"' in source for source in sources), option


@pytest.mark.parametrize("verb", options())
def test_help_has_every_name_whole_at_80_columns(verb: str) -> None:
    shown = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "80"}).stdout
    assert shown and max(len(line) for line in shown.splitlines()) <= 80
    assert {option for option in options()[verb] if not re.search(rf"{option}\b", shown)} == set()


def test_something_is_found() -> None:
    readme = list(commands(Path("README.md")))
    assert len(readme) > 12 and ("runtime build", []) in readme
    assert {"--gguf-type", "--onnx-asymmetric"} <= options()["export"]
