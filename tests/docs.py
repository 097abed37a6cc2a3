"""The shell commands of the documentation, and a checkout in which tests run them as they stand."""

import os
import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A heading, or a block of code, which a list may indent.
BLOCK = re.compile(
    r"^\#+\ (?P<heading>[^\n]+)$ | ^(?P<indent>\ *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "console")


@dataclass(frozen=True)
class Block:
    """A block of code: its section's heading, its language, and its text without indentation."""

    section: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, such as `docs/install.md`, in order; those in lists too."""
    found, section = [], ""
    for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if match["heading"]:
            section = match["heading"]
        else:
            found.append(Block(section, match["language"], textwrap.dedent(match["text"])))
    return found


def commands(page: str) -> list[Block]:
    """Return the blocks of shell commands of a page."""
    return [block for block in blocks(page) if block.language in SHELL]


def commands_beginning(page: str, start: str) -> str:
    """Return the commands of the block of a page that begins with some words."""
    (found,) = [block.text for block in commands(page) if block.text.startswith(start)]
    return found


class Checkout:
    """A copy of this checkout, in which commands run as in a person's shell."""

    def __init__(self, directory: Path, **environment: str) -> None:
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        # git also lists files that were removed and not committed.
        for name in (name for name in listed.split("\0") if (ROOT / name).is_file()):
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        (directory / ".venv").symlink_to(ROOT / ".venv")
        self.directory = directory
        # make and molecule may be running these tests.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAKE", "MFLAGS", "ANSIBLE", "MOLECULE"))
        }
        self._environment = inherited | environment

    def run(self, commands: str, said: str = "", *, accepted: int = 0, variables: dict[str, str] | None = None) -> str:
        """Run commands with further variables, which read what is said; return what they print."""
        done = subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=self.directory,
            env=self._environment | (variables or {}),
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == accepted, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout
