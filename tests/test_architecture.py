"""The house keeps its shape: who may import whom, what stays free of torch, and how large things may grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import ENTRY, House, run_one_step

import beit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> House:
    return House()


def test_imports_keep_the_contracts_of_pyproject() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("module", ["beit", "beit.cli.main", "beit.config.files", "beit.presets", "beit.masking"])
def test_is_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_resolves() -> None:
    for name in beit.__all__:
        assert getattr(beit, name) is not None


def test_no_module_imports_itself_through_others(house: House) -> None:
    """Packages and what lies in them included, which lint-imports does not look at."""
    assert house.circles() == []


def test_functions_are_at_most_50_lines_long(house: House) -> None:
    assert [function for function in house.functions() if function.lines > 50] == []


def test_folders_have_at_most_12_entries(house: House) -> None:
    roots = {"beit", "beit/recipes"}
    assert {name: entries for name, entries in house.folders().items() if entries > 12}.keys() <= roots


def test_parameter_objects_have_at_most_12_fields(house: House) -> None:
    """But the configurations, which are the flags of a verb or the whole of a network."""
    wide = {name: fields for name, fields in house.parameter_objects().items() if fields > 12}
    assert {name: fields for name, fields in wide.items() if not name.endswith("Config")} == {}


def test_pretraining_imports_few_files(house: House) -> None:
    closure = house.closure(ENTRY)
    assert len(closure) <= 72
    assert house.lines(closure) <= 11_300


def test_the_package_stays_within_its_budget(house: House) -> None:
    assert house.lines_of_code() <= 17_000


@pytest.mark.slow
def test_one_batch_passes_through_few_files() -> None:
    _, visits = run_one_step()
    assert {"recipes/pretrain.py", "models/encoder.py", "training/state.py"} <= set(visits)
    assert len(set(visits)) <= 23
