"""What made a report: commit, versions, command line."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tailrank", "polars", "torch", "lightgbm", "feast")


def commit() -> str:
    """The commit of this code, "with changes" where files differ from it; says so where there is no repository."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ("git", "rev-parse", "--short=12", "HEAD"), cwd=here, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            ("git", "status", "--porcelain", "--untracked-files=no"),
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "installed package, no repository"
    return head.stdout.strip() + (", with changes" if changes.stdout.strip() else "")


def versions() -> str:
    """Python and the packages that the numbers depend on."""
    found = [f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def command() -> str:
    """The command line, as one would type it; the program without its folder, addresses without passwords."""
    program = Path(sys.argv[0]).name
    return without_passwords(" ".join(["tailrank" if program == "__main__.py" else program, *sys.argv[1:]]))


def without_passwords(text: str) -> str:
    """The text with every `scheme://user:password@host` cut to `scheme://host`: reports are passed around."""
    return re.sub(r"(?<=://)[^/@\s\"']+@", "", text)
