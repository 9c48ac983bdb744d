"""What of .ci/run and .ci/bare is more than a command: ``python .ci/check.py NAME ARGUMENTS``; exit code 1 if bad."""

import importlib.metadata
import re
import shlex
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGEST = 2_000_000  # bytes
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_./-])/(?:home|root|mnt|opt|tmp|work|Users)/[A-Za-z0-9_.]")
REGISTRY = re.compile(r"--?(?:extra-)?index-url|find-links|https?://\S*/simple(?:/|\b)", re.IGNORECASE)
TABLE = re.compile(r"(^<!-- table: (\S+) -->\n).*?(\n<!-- /table -->$)", re.MULTILINE | re.DOTALL)
LOCKS = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "package-lock.json"}


def repository(*paths: str) -> list[str]:
    """No large file, lock file, path of one machine, or address of a package registry; in these files, else in all."""
    found = []
    for path in sorted(path for path in map(Path, paths or map(str, Path().rglob("*"))) if path.is_file()):
        if path.stat().st_size > LARGEST:
            found.append(f"{path}: {path.stat().st_size} bytes")
        if path.name in LOCKS:
            found.append(f"{path}: a lock file carries download addresses")
        content = path.read_bytes()
        if b"\0" in content[:8192] or path == Path(".ci/check.py"):
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line):
                found.append(f"{path}:{number}: {line.strip()[:120]}")
    return found


def line(marker: str) -> list[str]:
    """Print the one line of bash under ``<!-- MARKER -->`` in README.md or docs/install.md."""
    pages = "\n".join(Path(page).read_text(encoding="utf-8") for page in ("README.md", "docs/install.md"))
    found = re.findall(rf"^<!-- {re.escape(marker)} -->\n```bash\n(.+)\n```$", pages, re.MULTILINE)
    sys.stdout.write("".join(f"{text}\n" for text in found[:1]))
    return [] if len(found) == 1 else [f"README.md and docs/install.md have not one line under <!-- {marker} -->"]


def shown(*options: str) -> list[str]:
    """Pages that show a table whole show it as it is: between ``<!-- table: PATH -->``, from the page, and its end.

    With ``--write`` they are made to.
    """
    found = []
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md")), *sorted(Path("results").rglob("README.md"))):
        text = page.read_text(encoding="utf-8")
        now = TABLE.sub(partial(_filled, page), text)
        if now != text and "--write" in options:
            page.write_text(now, encoding="utf-8")
        elif now != text:
            found.append(f"{page} shows a table as it was: python .ci/check.py shown --write")
    return found


def _filled(page: Path, block: re.Match[str]) -> str:
    return f"{block[1]}{(page.parent / block[2]).read_text(encoding='utf-8').strip()}{block[3]}"


def constraints() -> list[str]:
    """Print what whitebox-seg needs here, without extras, and what that needs, a pinned version a line.

    Without torch's own libraries, which differ between its wheels.
    """
    versions: dict[str, str] = {}
    waiting = ["whitebox-seg"]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or ():
            requirement, _, marker = line.partition(";")
            name = re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \\[(]", requirement)[0]).lower()
            if "extra" in marker or name in versions or re.match(r"nvidia-|cuda-|triton", name):
                continue
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # of another system or Python
                continue
            waiting.append(name)
    python = ".".join(map(str, sys.version_info[:2]))
    sys.stdout.write(
        f"# Versions that the tests passed with, on Python {python}: pip install -c constraints.txt .\n"
        "# Written by `python .ci/check.py constraints`.\n"
    )
    sys.stdout.write("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    return []


def downloads(log: str) -> list[str]:
    """Print the megabytes of the files that pip says it took, from an index or from a folder."""
    text, units = Path(log).read_text(encoding="utf-8", errors="replace"), {"B": 1e-6, "kB": 1e-3, "MB": 1, "GB": 1e3}
    fetched = re.findall(r"Downloading \S+ \(([\d.]+) (B|kB|MB|GB)\)", text)
    local = [Path(path) for path in re.findall(r"Processing (/\S+\.(?:whl|tar\.gz|zip))", text)]
    size = sum(float(number) * units[unit] for number, unit in fetched)
    size += sum(path.stat().st_size / 1e6 for path in local if path.exists())
    sys.stdout.write(f"{len(fetched) + len(local)} files, {size:.0f} MB\n")
    return []


def cases(report: str) -> dict[str, str | None]:
    """The tests of a report, and why they were skipped (None: they ran); without those that need a GPU or a browser.

    By dotted name; that of a file which is skipped as a whole ends with the file.
    """
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        # of a file that is skipped as a whole only the text says why
        reason = None if skipped is None else f"{skipped.get('message')} {skipped.text}"
        if reason is None or not any(each in reason for each in ("needs a GPU", "needs a browser")):
            found[f"{case.get('classname')}.{case.get('name')}".lstrip(".")] = reason
    return found


def failed(report: str) -> list[str]:
    """Print the tests of a report that failed, one a line; bad if there is none."""
    every = ElementTree.parse(report).getroot().iter("testcase")
    bad = [case for case in every if case.find("failure") is not None or case.find("error") is not None]
    sys.stdout.write("".join(f"{case.get('classname')}::{case.get('name')}\n" for case in bad))
    return [] if bad else ["no test failed, but the run did"]


def with_extras(bare: str) -> list[str]:
    """Print what is tested once more with all extras, quoted for a shell: what lacked one, and what they may disturb.

    That is reading images (another OpenCV lies over ours), files of other packages, and each command.
    """
    again = {"tests/data", "tests/test_commands.py", *map(str, Path("tests/interop").glob("test_seg*.py"))}
    lacking = set()
    for name, reason in cases(bare).items():
        if reason is not None:
            given, bracket, parameters = name.partition("[")
            parts = given.split(".")
            last = next(index for index, part in enumerate(parts) if part.startswith("test_"))
            file = "/".join(parts[: last + 1]) + ".py"
            lacking.add("::".join([file, *parts[last + 1 :]]) + bracket + parameters)
    inside = {test for test in lacking if any(test.startswith((f"{path}/", f"{path}::")) for path in again)}
    longest_first = sorted(again | lacking - inside, key=lambda test: ("notebooks" not in test, test))
    sys.stdout.write(" ".join(map(shlex.quote, longest_first)) + "\n")
    return []


class _Page(HTMLParser):
    """The places that a page has, and those that it leads to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {each for each in (given.get("id"), given.get("name")) if each}
        self.links += [each for each in (given.get("href"), given.get("src")) if each]


def site(folder: str) -> list[str]:
    """Every link inside a built site leads to a file, and to a place in it; what is elsewhere is not asked for."""
    root = Path(folder).resolve()
    pages = {path: _Page(path) for path in root.rglob("*.html")}
    found, links = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{path.relative_to(root)}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{path.relative_to(root)}: {link} names no place there")
    sys.stdout.write(f"{len(pages)} pages, {links} links inside\n")
    return sorted(set(found)) if len(pages) > 20 else [f"only {len(pages)} pages"]


def skips(bare: str, full: str) -> list[str]:
    """Without extras, only what needs one is skipped, and all of that runs with them."""
    skipped = {name: reason for name, reason in cases(bare).items() if reason is not None}
    ran = {name for name, reason in cases(full).items() if reason is None}
    found = [f"{name} was skipped: {reason}" for name, reason in skipped.items() if "needs the extra" not in reason]
    never = (name for name in skipped if not any(other == name or other.startswith(f"{name}.") for other in ran))
    return found + [f"{name} does not run with all extras either" for name in never]


def startup() -> list[str]:
    """``whitebox --help`` answers in under half a second: the fastest of five, so that a busy machine is forgiven."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(["whitebox", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    sys.stdout.write(f"whitebox --help: median {statistics.median(seconds):.2f} s, fastest {min(seconds):.2f} s of 5\n")
    return [f"whitebox --help takes {min(seconds):.2f} s"] if min(seconds) > 0.5 else []


def wheel(path: str) -> list[str]:
    """All configs are in the wheel, and the marks that its packages are typed; tests and results are not."""
    names = set(zipfile.ZipFile(path).namelist())
    configs = {f"whitebox/{config.as_posix()}" for config in Path("configs").rglob("*.yaml")}
    typed = {f"{package}/py.typed" for package in ("whitebox", "analysis", "experiments")}
    found = [f"the wheel lacks {name}" for name in sorted((configs | typed) - names)]
    parts = {"whitebox_seg.py", "whitebox", "analysis", "experiments"}
    found += [
        f"the wheel has {name}"
        for name in sorted(names)
        if not (name.split("/")[0] in parts or name.split("/")[0].endswith(".dist-info"))
    ]
    sys.stdout.write(f"{Path(path).name}: {len(names)} files, {len(configs)} configs\n")
    return found if configs else ["there are no configs"]


if __name__ == "__main__":
    checks = (constraints, downloads, failed, line, repository, shown, site, skips, startup, wheel, with_extras)
    check = {function.__name__: function for function in checks}[sys.argv[1]]
    if problems := check(*sys.argv[2:]):
        sys.exit("\n".join(problems))
