"""The pages on the server name every option, address, limit and counter."""

from __future__ import annotations

import json
import math
import re
import struct

import pytest
from conftest import PROJECT
from typer.core import TyperGroup
from typer.main import get_command

from cervicyte.cli import app
from cervicyte.dashboard import intake, limits, overlays, session
from cervicyte.evaluation.familiarity import FEWEST_IMAGES
from cervicyte.explanation.verdict import FORWARD_PASSES
from cervicyte.network.description import SHIPPED_MODEL

SERVER = (PROJECT / "docs" / "dashboard_server.md").read_text()
README = (PROJECT / "README_DASHBOARD.md").read_text()
DEPLOYMENT = (PROJECT / "docs" / "deployment.md").read_text()


@pytest.mark.parametrize("path", [("serve",), ("log", "verify"), ("log", "export")], ids=" ".join)
def test_the_page_lists_every_option(path):
    command = get_command(app)
    for name in path:
        assert isinstance(command, TyperGroup)
        command = command.commands[name]
    options = [name for one in command.params for name in (*one.opts, *one.secondary_opts) if name[0] == "-"]
    assert options
    rows = [line.split("|")[1] for line in SERVER.splitlines() if line.startswith("| `-")]
    for option in options:
        assert any(f"`{option}`" in row for row in rows), option


def test_options_in_the_examples_are_options():
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    known = {name for one in group.commands["serve"].params for name in (*one.opts, *one.secondary_opts)}
    unit = re.search(r"ExecStart=(.*?[^\\])\n", DEPLOYMENT, re.DOTALL)
    assert unit is not None
    used = re.findall(r"--[a-z-]+", unit[1])
    assert len(used) > 3
    assert set(used) <= known


def test_the_limits_on_the_page_are_the_programs():
    assert limits.SECONDS_LYING == 3600
    for said in (
        f"up to {limits.MAX_IMAGES} images",
        f"up to {limits.MAX_EXPLAINED_IMAGES} images",
        f"holds {limits.MAX_UPLOAD_MB} MB at most",
        f"{limits.MAX_PIXELS // 1_000_000} million pixels",
        f"({limits.MAX_EXPLAINED_PIXELS // 1_000_000} million for maps)",
        f"Up to {limits.MAX_WAITING} images wait",
        f"of no more than {limits.MAX_EXPLAINED_AT_ONCE} images",
        f"hold {limits.MAX_UPLOADS_MB} MB at most",
        f"on their way {limits.MAX_UPLOADS_TOGETHER_MB:,} MB",
        f"What lies unread takes {limits.MAX_LYING_MB:,} MB together, and an hour at most",
        f"What the page asks has {limits.MAX_QUESTION_MB} MB",
        f"longer than {limits.SHOWN_SIDE:,} pixels",
    ):
        assert said in SERVER, said


def test_how_long_cells_are_kept_on_the_page_is_the_program_s():
    page = " ".join((PROJECT / "docs" / "dashboard.md").read_text().split())
    for said in (
        f"{limits.SECONDS_AFTER_LEAVING // 60} minutes after the page was left",
        f"{limits.SECONDS_KEPT // 3600} hours after the last thing",
        f"at most {looked_mb()} MB",
        f"{adapted_mb()} MB each for the model that ships",
        f"{3 * limits.MAX_ADAPTED_PIXELS // 1_000_000} MB while a model is adapted",
        f"more than {limits.MAX_SESSIONS_MB:,} MB",
        f"take up to {limits.MAX_OVERLAYS_MB:,} MB of the disk",
        f"Up to {limits.MAX_OVERLAID_LISTS} lists take turns",
        f"which takes {FORWARD_PASSES} passes",
        *(f"`{outcome}`" for outcome in overlays.OUTCOMES),
        f"more than {limits.MAX_SESSIONS:,} pages",
        f"It takes {FEWEST_IMAGES} images or more",
        f"| all files that are sent at once | {limits.MAX_UPLOADS_MB} MB |",
        f"| images in a list | {intake.MAX_CELLS} |",
        f"| files of a list, in memory | {intake.MAX_WORKLIST_MB} MB |",
    ):
        assert said in page, said
    assert (limits.SECONDS_OF_PATIENCE, session.SECONDS_UNTIL_IDLE) == (10, 300)  # in words there
    assert limits.HOW_LONG.replace("this page", "it") in " ".join(README.split())


def looked_mb() -> int:
    """Return what the largest image takes while it is looked at: itself, shown, under five maps, outlined."""
    shown = limits.SHOWN_SIDE**2
    return math.ceil((3 * limits.MAX_PIXELS + 3 * shown * 6 + 2 * shown) / 1_000_000)


def adapted_mb() -> int:
    """Return what the network that ships takes, its numbers as float32."""
    with SHIPPED_MODEL.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    shapes = [one["shape"] for name, one in header.items() if not name.startswith(("__", "beside"))]
    return round(4 * sum(map(math.prod, shapes)) / 1_000_000)


def test_the_page_lists_every_address_and_counter():
    from serving import api_of, small_classifier

    from cervicyte.dashboard.api import DescribedAPI

    with api_of(small_classifier()) as served:
        mounted = [getattr(route, "app", None) for route in served.routes]
        (api,) = (one for one in mounted if isinstance(one, DescribedAPI))
        described = api.openapi()
        names = {
            line.split()[2]
            for line in served.state.monitor.text().splitlines()
            if line.startswith("# TYPE cervicyte") and "_created" not in line
        }
    for path, methods in described["paths"].items():
        for method in methods:
            assert f"| `{method.upper()} {path}` |" in SERVER, path
    assert len(names) == 5
    for name in names:
        assert f"| `{name}` |" in DEPLOYMENT, name
    parameters = [one["name"] for one in described["paths"]["/explain"]["post"]["parameters"]]
    assert parameters == ["class", "method", "layer", "maps", "verdict"]
    for name in parameters:
        assert f"| `{name}` |" in SERVER
