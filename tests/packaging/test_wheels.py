"""What is inside the built distributions, and only that."""

import email
import tarfile
import tomllib
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.wheels

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "core", *sorted(p.parent for p in ROOT.glob("plugins/[!_]*/pyproject.toml"))]


class Built:
    """One distribution: its folder, and the wheel and sdist made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project: dict[str, Any] = tomllib.loads(
            (folder / "pyproject.toml").read_text("utf-8")
        )["project"]
        self.package = self.project["name"].replace("-", "_")
        self.stem = f"{self.package}-{self.project['version']}"
        with ZipFile(ROOT / "dist" / f"{self.stem}-py3-none-any.whl") as wheel:
            self.wheel = {name: wheel.read(name) for name in wheel.namelist()}
        with tarfile.open(ROOT / "dist" / f"{self.stem}.tar.gz") as sdist:
            self.sdist = {name.removeprefix(f"{self.stem}/") for name in sdist.getnames()}

    @property
    def metadata(self) -> Message:
        return email.message_from_bytes(self.wheel[f"{self.stem}.dist-info/METADATA"])

    def sources(self) -> set[str]:
        source = self.folder / "src"
        files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
        return {file.as_posix() for file in files if "__pycache__" not in file.parts}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def built(request: pytest.FixtureRequest) -> Built:
    return Built(request.param)


def test_the_wheel_has_every_source_file_and_nothing_else(built: Built) -> None:
    files = {name for name in built.wheel if ".dist-info/" not in name}
    assert files == built.sources()
    assert {PurePosixPath(name).parts[0] for name in files} == {built.package}


def test_the_wheel_is_typed_and_licensed(built: Built) -> None:
    assert built.wheel[f"{built.package}/py.typed"] == b""
    licence = built.wheel[f"{built.stem}.dist-info/licenses/LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert built.metadata["License-Expression"] == "Apache-2.0"


def test_the_metadata_points_at_no_checkout(built: Built) -> None:
    assert not [line for line in built.metadata.get_all("Requires-Dist", []) if "@" in line]
    assert built.metadata["Requires-Python"] == built.project["requires-python"]


def test_the_sdist_can_be_built_from(built: Built) -> None:
    expected = {f"src/{name}" for name in built.sources()}
    expected |= {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    assert expected <= built.sdist


def test_dist_has_nothing_else() -> None:
    stems = [Built(folder).stem for folder in FOLDERS]
    expected = {f"{s}.tar.gz" for s in stems} | {f"{s}-py3-none-any.whl" for s in stems}
    assert {path.name for path in (ROOT / "dist").iterdir()} - {".gitignore"} == expected
