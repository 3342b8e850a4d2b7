"""scripts/check_dist.py notices a data file that the wheel lacks."""

from pathlib import Path
from zipfile import ZipFile

from check_dist import missing_files


def wheel_of(package: Path, *names: str) -> Path:
    wheel = package.parent / "package-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name in names:
            archive.write(package / name, f"{package.name}/{name}")
    return wheel


def test_missing_data_files_are_listed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "page" / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "names.txt", "page/main.js", "page/__pycache__/a.pyc"):
        (package / name).write_bytes(b"")
    assert missing_files(wheel_of(package, "__init__.py"), package) == [
        "package/names.txt",
        "package/page/main.js",
    ]
    assert missing_files(wheel_of(package, "__init__.py", "names.txt", "page/main.js"), package) == []
