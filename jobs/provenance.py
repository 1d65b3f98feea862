"""What made a report: commit, versions, command line."""

import hashlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tailrank", "polars", "torch", "lightgbm", "feast")


def sha256(*paths: Path) -> str:
    """Of a file's bytes; of several files, or a folder of them, of the digests in the order of the names."""
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


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
