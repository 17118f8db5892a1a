"""What lies in an object store is named and read as what lies on the machine."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cervicyte.errors import UsageError
from cervicyte.inference.object_store import files_below, is_folder, is_uri, open_file, size_of
from cervicyte.inference.predict import image_of
from cervicyte.inference.sources import Source, sources_of


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in folders whose names sort otherwise than their paths, hidden ones, an archive, and lists."""
    folder = tmp_path / "cells"
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "a b/1.png", "a/#10.jpg", "c.bmp", "a.png", ".d/3.png", "b/.4.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for name in ("b/2.png", "c.bmp"):
            archive.write(folder / name, name)
    names = [f"{folder}/c.bmp", f"{folder}/a b/1.png"]
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    pd.DataFrame({"class": ["x", "y", "z"], "path": [names[0], None, names[1]]}).to_parquet(
        tmp_path / "names.parquet"
    )
    return folder


@pytest.fixture
def memory(folder) -> Iterator[str]:
    """The same in a store that only fsspec knows."""
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe(f"/bucket/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def told(sources, root: str) -> list[tuple[str, bytes]]:
    return [(source.name.removeprefix(root), source.read()) for source in sources]


def test_a_store_gives_the_images_of_a_folder_in_the_folders_order(folder, memory):
    right = told(sources_of([str(folder)]), str(folder))
    assert [name for name, _ in right] == [
        "/a.png", "/c.bmp", "/.d/3.png", "/a/#10.jpg", "/a b/1.png", "/b/2.png",
    ]  # fmt: skip
    assert told(sources_of([f"file://{folder}"]), f"file://{folder}") == right
    assert told(sources_of([f"file://{folder}/"]), f"file://{folder}") == right
    assert told(sources_of([memory]), memory) == right


def test_a_file_and_an_archive_are_read_from_a_store(folder):
    (one,) = sources_of([f"file://{folder}/c.bmp"])
    assert (one.name, one.read()) == (f"file://{folder}/c.bmp", (folder / "c.bmp").read_bytes())
    root = f"file://{folder.parent}/cells.zip"
    assert told(sources_of([root]), root) == told(
        sources_of([f"{folder.parent}/cells.zip"]), f"{folder.parent}/cells.zip"
    )


@pytest.mark.parametrize("begin", ["@", "@file://"])
@pytest.mark.parametrize("name", ["names.txt", "names.parquet"])
def test_lists_are_read_wherever_they_lie_and_in_parquet_too(folder, begin, name):
    found = [source.name for source in sources_of([f"{begin}{folder.parent}/{name}"])]
    assert found == [f"{folder}/c.bmp", f"{folder}/a b/1.png"]


def test_a_parquet_list_without_paths_is_refused_by_name(tmp_path):
    pd.DataFrame({"name": ["a.png"]}).to_parquet(tmp_path / "names.parquet")
    (tmp_path / "no.parquet").write_text("no table")
    for name in ("names.parquet", "no.parquet"):
        with pytest.raises(
            UsageError, match=rf"{name}: cannot be read as a list in Parquet .* column `path`"
        ):
            list(sources_of([f"@{tmp_path / name}"]))


def test_what_is_larger_than_the_bound_is_not_read(folder):
    source = Source("c.bmp", f"file://{folder}/c.bmp")
    assert size_of(source.location) == (folder / "c.bmp").stat().st_size
    with pytest.raises(ValueError, match="larger than"):
        source.read(largest=100)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///no/such/folder", "No such file or directory"),
        ("nowhere://bucket/cells", "nothing here opens nowhere://bucket/"),
        ("file://{folder}/empty", "holds no images"),
    ],
)
def test_a_uri_that_leads_to_nothing_is_refused_by_name(folder, uri, said):
    (folder / "empty").mkdir()
    uri = uri.format(folder=folder)
    with pytest.raises(UsageError, match=said) as error:
        list(sources_of([uri]))
    assert str(error.value).startswith(uri)


def test_a_listed_file_that_is_missing_in_a_store_says_what_a_missing_path_says(folder):
    errors = []
    for location in ("/no/such.png", "file:///no/such.png", "memory://no/such.png"):
        with pytest.raises(OSError, match="No such file") as error:
            Source(location, location).read()
        errors.append(error.value.strerror)
    assert len(set(errors)) == 1
    with pytest.raises(OSError, match="nothing here opens nowhere://a/"):
        open_file("nowhere://a/b.png")


class Throttled(Exception):
    """What a store's own package may raise: no OSError."""


class Busy(fsspec.AbstractFileSystem):
    """A store that has one image, answers for no other, and breaks off while it is read."""

    protocol = "busy"

    def __init__(self, *given, **settings) -> None:
        super().__init__(*given, **settings)
        if settings.get("host") == "locked":
            raise Throttled("no keys")

    @staticmethod
    def _get_kwargs_from_urls(uri: str) -> dict:
        return {"host": uri.split("/")[2]}

    def info(self, path: str, **settings) -> dict:
        if not path.endswith(("cell.png", "cells.zip")):
            raise Throttled("slow\ndown")
        return {"name": path, "type": "file", "size": 100}

    def isfile(self, path: str) -> bool:
        return True

    def _open(self, path: str, *given, **settings):
        if "late" not in path:
            raise Throttled("slow\ndown")
        return Breaking(b"PK\x03\x04" * 25)


class Breaking(io.BytesIO):
    def read(self, *given) -> bytes:
        raise Throttled("slow\ndown")


@pytest.mark.parametrize("name", ["cell.png", "late/cell.png", "cells.zip", "late/cells.zip"])
def test_a_store_with_errors_of_its_own_has_a_row_for_them(name):
    fsspec.register_implementation("busy", Busy, clobber=True)
    (source,) = sources_of([f"busy://bucket/{name}"])
    digest, image, error = image_of(source)
    assert (digest, image) == ("", None)
    assert error.startswith(f"busy://bucket/{name}: cannot be read (")
    assert "slow down" in error


@pytest.mark.parametrize("name", ["busy://bucket/cells", "@busy://bucket/names.txt", "busy://locked/a"])
def test_a_folder_or_list_whose_store_has_errors_of_its_own_is_refused_by_name(name):
    fsspec.register_implementation("busy", Busy, clobber=True)
    with pytest.raises(UsageError, match=r"busy://\w+/\w+.*: cannot be read"):
        list(sources_of([name]))


def test_a_drive_of_windows_is_no_uri(folder, memory):
    assert not is_uri("C://cells")
    assert not is_uri("cells/a.png")
    assert is_uri("s3://bucket")
    assert is_folder(f"{memory}/a")
    assert not is_folder(f"{memory}/c.bmp")
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="cells"):
        list(files_below(f"file://{folder}"))
