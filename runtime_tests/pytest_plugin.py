"""The gates as pytest's test cases: `pytest --pyargs lowrank_export.runtime_tests --artifact DIR --reference MODEL`.

A test case per artifact, runtime and gate; everything is measured once, when the first of them runs. Loaded by every
pytest where this package is installed, so nothing heavy is imported before there is something to measure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .gates.gate_file import GateSettings
    from .gates.gates import Gate
    from .report.report import Report

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that matter of `lowrank-export validate`, under the same names with `--lowrank-` before them."""
    group = parser.getgroup("lowrank-export", "release gate of compressed models (lowrank-export)")
    group.addoption("--lowrank-artifact", action="append", type=Path, help=".gguf file, ONNX or checkpoint folder")
    group.addoption("--lowrank-reference", help="the checkpoint the artifacts were exported from")
    group.addoption("--lowrank-dense", help="the uncompressed model")
    group.addoption("--lowrank-gates", type=Path, help="thresholds; default: ./gates.yaml if it is there")
    group.addoption("--lowrank-gate", action="append", default=[], metavar="NAME=VALUE", help="one threshold")
    group.addoption("--lowrank-evaluate", default="python-docs", help="text that is measured on")
    group.addoption("--lowrank-evaluation-windows", type=int, default=8, help="windows measured")
    group.addoption("--lowrank-evaluation-length", type=int, default=512, help="tokens per window")
    group.addoption("--lowrank-threads", type=int, default=os.cpu_count() or 1, help="CPU threads of the runtimes")
    group.addoption("--lowrank-speed", action="store_true", help="time prefill and decode too")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a bad call before anything is collected."""
    if config.getoption("lowrank_artifact", None) and not config.getoption("lowrank_reference"):
        raise pytest.UsageError(
            "--lowrank-artifact needs --lowrank-reference: the checkpoint the artifacts were exported from"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Stand in for this package's folders: their modules are no tests, and the gates are no modules."""
    if not parent.config.getoption("lowrank_artifact", None):
        return None
    found = path.resolve()
    if found == HERE:
        return GateFolder.from_parent(parent, path=path)
    return pytest.Dir.from_parent(parent, path=path) if found == HERE.parent else None


@dataclass(frozen=True)
class Place:
    """One gate of one artifact in one runtime."""

    path: Path
    backend: str
    gate: str


class GateFolder(pytest.Directory):
    """All gates that the options ask for."""

    def collect(self) -> Iterator[pytest.Item]:
        """A test case per gate; an artifact that is missing is an error of the collection."""
        from ..converter.core.errors import LowRankError

        try:
            measurement = Measurement(self.config)
            places = list(measurement.places())
        except LowRankError as error:
            raise self.CollectError(str(error)) from None
        for place in places:
            name = f"{place.gate}[{place.path.name}-{place.backend}]"
            yield GateItem.from_parent(self, name=name, place=place, measurement=measurement)


class GateItem(pytest.Item):
    """One gate."""

    def __init__(self, *, place: Place, measurement: Measurement, **options: Any) -> None:
        super().__init__(**options)
        self.place = place
        self.measurement = measurement

    def runtest(self) -> None:
        """Fail with name, value and threshold; skip a default gate whose value was not measured."""
        gates = self.measurement.gates(self.place)
        gate = next((gate for gate in gates if gate.name == self.place.gate), None)
        if gate is None:
            broken = any(not gate.passed for gate in gates if gate.name == "artifact.runs")
            pytest.skip("the artifact did not run" if broken else "not measured")
        self.user_properties += [("value", gate.value), ("threshold", gate.threshold)]
        if not gate.passed:
            pytest.fail(gate.words, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """What the terminal calls it."""
        return self.path, None, self.name


class Measurement:
    """The validation that the options describe, run once."""

    def __init__(self, config: pytest.Config) -> None:
        from .artifacts import find_artifacts

        self.options = config.option
        self.artifacts = [found for path in self.options.lowrank_artifact for found in find_artifacts(path)]
        self.thresholds = self._thresholds()
        self._report: Report | None = None

    def places(self) -> Iterable[Place]:
        """Every gate of every artifact, in the order measured."""
        from ..converter.core.errors import InputError
        from .artifacts import describe
        from .backends.formats import backend_names
        from .gates.gate_file import gate_names

        for path in self.artifacts:
            try:
                artifact = describe(path)
                names = gate_names(artifact.format, artifact.quantization, self.thresholds)
            except InputError:
                names = ["artifact.runs"]
            for backend in backend_names(path):
                yield from (Place(path, backend, name) for name in names)

    def gates(self, place: Place) -> tuple[Gate, ...]:
        """The gates of an artifact in a runtime."""
        rows = self.report.rows
        return next(
            row.gates for row in rows if row.gates and (row.path, row.backend) == (str(place.path), place.backend)
        )

    @property
    def report(self) -> Report:
        """Measure, the first time."""
        if self._report is None:
            from ..converter.core.progress import SilentProgress
            from ..converter.model.source import open_checkpoint, open_source
            from .evaluation import Evaluation, load_windows
            from .validate import DenseModel, validate

            given = self.options
            reference = open_checkpoint(given.lowrank_reference, SilentProgress())
            evaluation = Evaluation(
                given.lowrank_evaluate,
                given.lowrank_evaluation_windows,
                given.lowrank_evaluation_length,
                given.lowrank_threads,
                given.lowrank_speed,
            )
            dense = None
            if given.lowrank_dense is not None:
                dense = DenseModel(open_source(given.lowrank_dense, SilentProgress(), "--lowrank-dense").path)
            self._report = validate(
                self.artifacts,
                reference=reference,
                dense=dense,
                windows=load_windows(evaluation, reference),
                settings=evaluation.settings(),
                gates=self.thresholds,
            ).with_provenance({"evaluation": evaluation.facts()})
        return self._report

    def _thresholds(self) -> GateSettings:
        from .gates.gate_file import chosen_gates

        return chosen_gates(self.options.lowrank_gates, self.options.lowrank_gate)
