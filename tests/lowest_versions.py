"""Print pyproject's dependencies, each pinned to the lowest version that it allows.

`make lowest` installs them. With `pip install` the CUDA build of torch comes along; its version is what
is tested.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def lowest(requirement: str) -> str:
    """Turn `name>=1.2` into `name==1.2`; others stay."""
    return re.sub(r">=", "==", requirement, count=1)


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    not_wanted = ("mypy", "cervicyte[train]")  # the latter's own dependencies stand here instead
    tools = [line for line in extras["dev"] if line.split(">")[0] not in not_wanted]
    print("\n".join([*map(lowest, [*project["dependencies"], *extras["train"]]), *tools]))
