"""The rules of the house that no single module can hold: who imports whom, what is declared, how fast it starts."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import whitebox

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("whitebox", "analysis", "experiments")
DOOR = "whitebox_seg"  # the module that opens them
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What each part may import of this project, besides itself; every module belongs to a part. The packages are no circle:
# the command line, which is inside `whitebox`, stands above all of them, and only it knows itself.
_LOW = (
    "errors",
    "extras",
    "files",
    "foreign",
    "lock",
    "memory",
    "names",
    "palette",
    "pictures",
    "terminal",
    "text",
    "versions",
)
FOUNDATIONS = {f"whitebox.{name}" for name in _LOW}
CONFIG = {"whitebox.catalog", "whitebox.config"}
ENGINE = FOUNDATIONS | CONFIG | {"whitebox.data", "whitebox.engine", "whitebox.interop", "whitebox.models"}
BELOW_CLI = ENGINE | {"whitebox.api", "whitebox.runs"}
ARROWS = {
    "whitebox.errors": set(),
    "whitebox.extras": {"whitebox.errors"},
    "whitebox.files": {"whitebox.errors"},
    "whitebox.foreign": set(),
    "whitebox.lock": {"whitebox.errors"},
    "whitebox.memory": set(),
    "whitebox.names": {"whitebox.errors"},
    "whitebox.palette": set(),
    "whitebox.pictures": {"whitebox.text"},
    "whitebox.terminal": {"whitebox.text"},
    "whitebox.text": {"whitebox.errors"},
    "whitebox.versions": set(),
    "whitebox.models": FOUNDATIONS,
    "whitebox.catalog": FOUNDATIONS | {"whitebox.models"},
    "whitebox.config": FOUNDATIONS | {"whitebox.catalog", "whitebox.models"},
    "whitebox.data": FOUNDATIONS | CONFIG | {"whitebox.models"},
    "whitebox.engine": FOUNDATIONS | CONFIG | {"whitebox.data", "whitebox.models"},
    "whitebox.interop": FOUNDATIONS | CONFIG | {"whitebox.data", "whitebox.engine", "whitebox.models"},
    "whitebox.api": ENGINE,
    "whitebox.runs": ENGINE | {"whitebox.api"},
    "analysis": BELOW_CLI,
    "analysis.maths": FOUNDATIONS
    | CONFIG
    | {"whitebox.data", "whitebox.models"}
    | {"whitebox.engine.confidence", "whitebox.engine.evaluate"},
    "analysis.measures": BELOW_CLI
    | {f"analysis.{name}" for name in ("ask", "consumed", "maths", "measurement", "record")},
    "analysis.show": FOUNDATIONS
    | {"whitebox.catalog", "whitebox.data.fingerprint", "analysis.measurement", "analysis.record"}
    | {
        f"analysis.maths.{name}"
        for name in ("agreement", "conventions", "corruption_names", "levels", "multiplicity", "packing", "ratios")
    },
    "experiments": BELOW_CLI | {"analysis"},
    "whitebox.with_parent": set(),
    "whitebox.sweep": BELOW_CLI | {"experiments"},
    "whitebox.cli": BELOW_CLI | {"analysis", "experiments", "whitebox.sweep", "whitebox.with_parent"},
    "whitebox.__main__": {"whitebox.cli"},
    "whitebox": {"whitebox.api", "whitebox.errors", "whitebox.extras", "whitebox.models"},  # its own file
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules a file imports when it runs, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; this project uses absolute ones"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def part_of(path: Path) -> str:
    """The longest part that a file belongs to."""
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    parts = [part for part in ARROWS if name == part or (part != "whitebox" and belongs(name, {part}))]
    assert parts, f"{path.relative_to(REPOSITORY)} belongs to no part of the house: name it in ARROWS"
    return max(parts, key=len)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_arrows_point_one_way(path: Path) -> None:
    part = part_of(path)
    allowed = ARROWS[part] | ({part} if part != "whitebox" else set())
    ours = [target for target in imported(path) if target.split(".")[0] in PACKAGES]
    assert not [target for target in ours if not belongs(target, allowed) and target != "whitebox.__version__"]


# Where extras are not installed, and of two wheels that bring the same folder, nobody can say it but us.
BROUGHT_BY = {
    "av": ["av"],
    "cv2": ["opencv-python-headless"],
    "imagecorruptions": ["imagecorruptions-imaug"],
    "mmengine": ["onedl-mmengine"],
    "open_clip": ["open_clip_torch"],
    "mmseg": ["onedl-mmsegmentation"],
}


def test_what_is_imported_is_declared() -> None:
    extras = [line for extra, lines in PROJECT["optional-dependencies"].items() if extra != "test" for line in lines]
    declared = {_normal(re.split(r"[<>=!~ \[;]", line)[0]) for line in PROJECT["dependencies"] + extras}
    known = {**importlib.metadata.packages_distributions(), **BROUGHT_BY}
    names = {target.split(".")[0] for path in SOURCES for target in imported(path)}
    foreign = names - set(sys.stdlib_module_names) - {*PACKAGES, DOOR}
    undeclared = {
        name for name in foreign if not {_normal(distribution) for distribution in known.get(name, ())} & declared
    }
    assert not undeclared


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = {"torch", "torchvision", "timm", "numpy", "pandas", "scipy", "matplotlib", "mmseg", "cv2", "accelerate"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = run(
        "import sys\n"
        "from whitebox.cli import main\n"
        f"sys.argv = ['whitebox', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sorted(name for name in sys.modules if '.' not in name))"
    ).split("LOADED")[-1]
    assert "typer" in loaded.split() and not HEAVY & set(loaded.split())


def test_importing_whitebox_loads_nothing_heavy() -> None:
    assert not HEAVY & set(run("import sys, whitebox; print(*sys.modules)").split())


def test_the_changelog_knows_this_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(whitebox.__version__)}\b", changelog, re.MULTILINE)


@pytest.mark.parametrize("marker", ["ci:quickstart", "ci:extras", "ci:test"])
def test_pages_have_the_lines_that_ci_runs(marker: str) -> None:
    pages = "\n".join((REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "docs/install.md"))
    blocks = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)\n```$", pages, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1 and "\n" not in blocks[0] and blocks[0].startswith("pip install -e")


def test_pages_show_tables_as_they_are(tmp_path: Path) -> None:
    """And are made to by one command."""
    check = [sys.executable, str(REPOSITORY / ".ci" / "check.py"), "shown"]
    assert subprocess.run(check, cwd=REPOSITORY).returncode == 0
    page, table = tmp_path / "README.md", tmp_path / "tables" / "a.md"
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    table.parent.mkdir()
    table.write_text("| \\1 |\n")
    page.write_text("Above.\n\n<!-- table: tables/a.md -->\n| old |\n<!-- /table -->\n\nBelow.\n")
    assert subprocess.run(check, cwd=tmp_path).returncode == 1
    assert subprocess.run([*check, "--write"], cwd=tmp_path).returncode == 0
    assert page.read_text() == "Above.\n\n<!-- table: tables/a.md -->\n| \\1 |\n<!-- /table -->\n\nBelow.\n"
    assert subprocess.run(check, cwd=tmp_path).returncode == 0


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == whitebox.__version__ and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_constraints_hold_a_version_that_we_ask_for() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[_normal(requirement.name)], prereleases=True), line


def test_forms_and_workflows_are_whole() -> None:
    github = REPOSITORY / ".github"
    read = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in github.rglob("*.yml")}
    for name in ("bug.yml", "measurement.yml"):
        assert {"name", "description", "body"} <= set(read[name]) and all("type" in part for part in read[name]["body"])
    steps = [step.get("run") for job in read["ci.yml"]["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    for workflow in (read["ci.yml"], read["release.yml"]):
        assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so itself
    publish = read["release.yml"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write", "attestations": "write"} and publish["environment"]


def test_hooks_check_what_ci_checks() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].removesuffix(" --fix") for hook in hooks] == [
        "ruff check",
        "ruff format",
        "python .ci/check.py repository",
        "mypy",
    ]


def test_the_image_copies_what_is_there_and_let_in() -> None:
    admitted = set((REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines())
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"whitebox", "analysis", "experiments", "configs", "pyproject.toml"} <= set(copied)
    python = re.fullmatch(r"FROM python:([\d.]+)-slim-[a-z]+", next(line for line in lines if line.startswith("FROM")))
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert python is not None and f"on Python {python[1]}:" in constraints  # what it installs was tested on it
    for name in copied:
        assert (REPOSITORY / name).exists() and f"!{name}" in admitted, name
