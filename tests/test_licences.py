"""What is installed along with Cervicyte allows closed use, or NOTICE says what it asks."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from conftest import PROJECT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = re.compile(
    r"MIT|MIT-CMU|MIT License|(The )?(\d-Clause )?BSD.*|0BSD|BSL-1\.0|Apache.*|ISC.*|PSF-2\.0|Zlib|CC0-1\.0"
    r"|Python Software Foundation License"
)


def brought_along(name: str, extras: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Return all that an installation has because of `name`, by name, as far as it is installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    asked, waiting = set(), [(name, extras)]
    while waiting:
        one = waiting.pop()
        if one in asked:
            continue
        asked.add(one)
        try:
            found[canonicalize_name(one[0])] = distribution = importlib.metadata.distribution(one[0])
        except importlib.metadata.PackageNotFoundError:  # not for this system, or an extra's
            continue
        for requirement in map(Requirement, distribution.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *one[1])):
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return found


def licences_of(distribution: importlib.metadata.Distribution) -> list[str]:
    """Return the licences that a distribution names; of an expression, each of its parts."""
    said = distribution.metadata.json
    if expression := said.get("license_expression"):
        return [part for part in re.split(r"\s*\b(?:AND|OR)\b\s*|[()]", str(expression)) if part.strip()]
    named = [
        line.rpartition(" :: ")[2] for line in said.get("classifier", []) if line.startswith("License ::")
    ]
    return named or str(said.get("license", "")).strip().splitlines()[:1]


@pytest.mark.full
def test_every_library_allows_closed_use_or_notice_says_what_it_asks():
    libraries = brought_along("cervicyte", ("train",))
    assert {"numpy", "torch", "gradio", "certifi"} <= set(libraries)
    notice = (PROJECT / "NOTICE").read_text()
    for name, library in libraries.items():
        licences = licences_of(library)
        if not licences or not all(PERMISSIVE.fullmatch(one) for one in licences):
            assert name in notice or (name.startswith("nvidia-") and "nvidia-*" in notice), (name, licences)
            assert not re.search(r"(?<!L)GPL|Affero", " ".join(licences)), (name, licences)


def test_the_project_names_what_each_library_is_for():
    text = (PROJECT / "pyproject.toml").read_text()
    lists = text.partition("\ndependencies = [")[2].partition("[project.scripts]")[0]
    for line in re.findall(r'^  "[\w\[\]-]+.*$', lists, re.MULTILINE):
        assert re.search(r'",\s+# \S', line), line
