"""The README is true: its links lead somewhere, its settings load, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import flow
from jobs.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_link_and_every_file_it_names_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    named = re.findall(r"`((?:feature_repo|embedders|ranker|jobs|examples|tests)/[\w./]+)`", README)
    assert len(links) > 5
    for path in [*links, *named]:
        assert (ROOT / path).exists(), path


def test_every_step_of_the_flow_is_drawn():
    drawing = README.split("## Two commands")[0]
    for name in flow.STEPS:
        assert name in drawing, name


@pytest.mark.parametrize("text", blocks("toml"))
def test_its_settings_load(text: str, tmp_path: Path):
    (tmp_path / "tailrank.toml").write_text(text)
    load_settings(tmp_path / "tailrank.toml")


def test_its_log_described_by_columns_is_one_that_the_source_accepts(tmp_path: Path):
    from jobs.raw_sources import columns

    (tmp_path / "tailrank.toml").write_text(blocks("toml")[0])
    config = load_settings(tmp_path / "tailrank.toml").steps["ingest"].model_dump()
    assert columns.label_rule(columns.Config(**config["options"])).startswith("clicked = opened")


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "examples").glob("*.toml")), ROOT / "tailrank.toml"], ids=lambda f: f.name
)
def test_the_example_settings_load(file: Path):
    load_settings(file)


def test_its_make_targets_and_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    help_text = subprocess.run(
        [sys.executable, "-m", "jobs", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for command in set(re.findall(r"tailrank (\w+)", README)) - {"run"}:
        assert command in help_text, command
