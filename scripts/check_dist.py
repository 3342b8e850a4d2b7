"""Build the sdist and the wheel into dist/, and check them.

    python scripts/check_dist.py

The wheel is built from the sdist. Both must have valid metadata, and the wheel must contain every file of
src/flashmore. It is then installed into a new virtual environment, and commands that read its data files
run outside the checkout.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
RECORD = ROOT / "benchmarks" / "results" / "epyc-2-cores-step.json"
COMMANDS = (
    "demo --out demo --picture demo/names.png",
    "page demo/transformer --out page.html",
    "export demo/transformer --to safetensors --out exported",
    "generate demo/transformer --count 5",
    f"report {RECORD.name} --out report.html --markdown report.md",
)
"""What runs in an empty folder that also contains the record."""


def missing_files(wheel: Path, package: Path) -> list[str]:
    """The files of a package's source folder that its wheel does not contain."""
    with ZipFile(wheel) as archive:
        contained = set(archive.namelist())
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted({path.relative_to(package.parent).as_posix() for path in files} - contained)


def build() -> Path:
    """Build both into dist/ in place of earlier ones, check the metadata, and give the wheel's path."""
    for old in DIST.glob("flashmore-*"):
        old.unlink()
    # Without --sdist or --wheel, the wheel is built from the sdist, which shows that the sdist is complete.
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    built = sorted(DIST.glob("flashmore-*"))
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    (wheel,) = (path for path in built if path.suffix == ".whl")
    return wheel


def run(*words: object, cwd: Path = ROOT) -> str:
    """Run a program, and give what it prints to stdout; exit if it fails."""
    command = [str(word) for word in words]
    print("$", *command, flush=True)
    # The variables that could make Python import flashmore from the checkout are left out.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    done = subprocess.run(command, cwd=cwd, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


def check_installed(wheel: Path, version: str, folder: Path) -> Iterator[str]:
    """Install the wheel below an empty folder and run commands there; yield what is wrong."""
    run(sys.executable, "-m", "venv", folder / "venv")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder / "venv")}))
    run(
        scripts / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "constraints.txt",
        wheel,
        cwd=folder,
    )
    flashmore = scripts / "flashmore"
    printed = run(flashmore, "--version", cwd=folder).strip()
    if printed != f"flashmore {version}":
        yield f"--version: expected flashmore {version}, found {printed!r}"
    (folder / RECORD.name).write_bytes(RECORD.read_bytes())
    for command in COMMANDS:
        run(flashmore, *command.split(), cwd=folder)
    here = json.loads(run(flashmore, "env", "--json", cwd=folder))
    if here["environment"]["commit"] is not None:
        yield f"env: expected no commit outside a checkout, found {here['environment']['commit']}"


def main() -> int:
    """Build and check; 1 if something is wrong."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    wheel = build()
    problems = [f"not in {wheel.name}: {name}" for name in missing_files(wheel, ROOT / "src" / "flashmore")]
    with TemporaryDirectory() as folder:
        problems += check_installed(wheel, version, Path(folder))
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
