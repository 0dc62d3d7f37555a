"""As much of Dockerfile and .dockerignore as this repository uses; anything else is an error, not a guess."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]

KNOWN = {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


@dataclass(frozen=True, slots=True)
class Copy:
    """One COPY instruction; `stage` is its `--from`."""

    stage: str | None
    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it, as written: what it inherits is `Dockerfile.chain`'s business."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """Arguments of every such instruction, in order."""
        return [argument for word, argument in self.instructions if word == keyword]

    def copies(self) -> list[Copy]:
        """Its COPY instructions."""
        return [_copy(argument) for argument in self.all("COPY")]


class Dockerfile:
    """Stages by name, in order."""

    def __init__(self, text: str) -> None:
        self.stages: dict[str, Stage] = {}
        for keyword, argument in _instructions(text):
            if keyword == "FROM":
                base, as_, name = argument.split()
                if as_.upper() != "AS" or name in self.stages:
                    raise ValueError(f"FROM {argument}: every stage has a name of its own")
                stage = self.stages[name] = Stage(name, base)
            else:
                stage.instructions.append((keyword, argument))

    def chain(self, name: str) -> list[Stage]:
        """The stage and what it is based on, the outermost base first."""
        stage = self.stages[name]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def last(self, name: str, keyword: str) -> str:
        """The argument in force at the end of the stage: the last one wins, inherited or not."""
        return [argument for stage in self.chain(name) for argument in stage.all(keyword)][-1]

    def environment(self, name: str) -> dict[str, str]:
        """What the stage and its bases set; references to other variables stay as written."""
        arguments = [argument for stage in self.chain(name) for argument in stage.all("ENV")]
        assignments = [assignment.partition("=") for argument in arguments for assignment in shlex.split(argument)]
        return {variable: value for variable, _, value in assignments}


def read_dockerfile() -> Dockerfile:
    """The repository's own."""
    return Dockerfile((ROOT / "Dockerfile").read_text("utf-8"))


def exec_form(argument: str) -> list[str]:
    """The words of a JSON-form ENTRYPOINT or CMD; the shell form would hide the process from signals."""
    words = json.loads(argument)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{argument}: not the JSON form")
    return words


class DockerIgnore:
    """What `docker build` sends to the builder: of all the patterns that match, the last one decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self._rules = [
            (_pattern(line.removeprefix("!")), line.startswith("!")) for line in lines if line and line[0] != "#"
        ]

    def sends(self, path: str) -> bool:
        """Whether the file at this path, relative to the context, is sent. A folder's rule holds for what is in it."""
        levels = [str(level) for level in (PurePosixPath(path), *PurePosixPath(path).parents)]
        is_sent = True
        for pattern, is_exception in self._rules:
            if any(pattern.fullmatch(level) for level in levels):
                is_sent = is_exception
        return is_sent


def read_dockerignore() -> DockerIgnore:
    """The repository's own."""
    return DockerIgnore((ROOT / ".dockerignore").read_text("utf-8"))


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    instructions = []
    for line in logical:
        keyword, _, argument = line.partition(" ")
        if keyword not in KNOWN:
            raise ValueError(f"{line!r}: teach this parser {keyword} first")
        instructions.append((keyword, argument.strip()))
    return instructions


def _copy(argument: str) -> Copy:
    words = argument.split()
    stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    if words[0].startswith("--"):
        raise ValueError(f"COPY {argument}: teach this parser {words[0]} first")
    return Copy(stage, tuple(words[:-1]), words[-1])


def _pattern(text: str) -> re.Pattern[str]:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", text)
    return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts))
