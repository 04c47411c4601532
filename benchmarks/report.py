"""Writes the sections of benchmarks/results.md, one per benchmark, each with the command that made it."""

import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results.md"
HEADER = (
    "# Results\n\nEvery section is written by the command under its title; running it again replaces the section.\n"
)


def processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def machine_line(*packages: str) -> str:
    """Processor, cores and versions of some packages."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def this_command() -> str:
    """The command that is running, as it was given: `python -m MODULE ARGUMENTS`."""
    module = sys.modules["__main__"].__spec__.name
    return " ".join(["python -m", module, *sys.argv[1:]])


def write_section(title: str, command: str, lines: list[str]) -> None:
    """Replaces the section `title` of the results where it stands (or adds it) and prints it."""
    section = f"## {title}\n\n`{command}`\n\n" + "\n".join(lines).strip() + "\n"
    text = RESULTS.read_text() if RESULTS.exists() else HEADER
    sections = [part.strip() + "\n" for part in re.split(r"(?m)^(?=## )", text)]
    place = next((i for i, part in enumerate(sections) if part.startswith(f"## {title}\n")), len(sections))
    sections[place : place + 1] = [section]
    temporary = RESULTS.with_suffix(".partial")
    temporary.write_text("\n".join(sections))
    os.replace(temporary, RESULTS)
    print(section)
