"""What of .ci/run and .ci/bare is more than a command: ``python .ci/check.py NAME ARGUMENTS``; exit code 1 if bad."""

import re
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

LARGEST = 2_000_000  # bytes
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_./-])/(?:home|root|mnt|opt|tmp|work|Users)/[A-Za-z0-9_.]")
REGISTRY = re.compile(r"--?(?:extra-)?index-url|find-links|https?://\S*/simple(?:/|\b)", re.IGNORECASE)
LOCKS = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "package-lock.json"}


def repository() -> list[str]:
    """No large file, lock file, path of one machine, or address of a package registry."""
    found = []
    for path in sorted(path for path in Path().rglob("*") if path.is_file()):
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
    """Print the one line of bash under ``<!-- MARKER -->`` in README.md."""
    readme = Path("README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- {re.escape(marker)} -->\n```bash\n(.+)\n```$", readme, re.MULTILINE)
    sys.stdout.write("".join(f"{text}\n" for text in found[:1]))
    return [] if len(found) == 1 else [f"README.md has not one line under <!-- {marker} -->"]


def downloads(log: str) -> list[str]:
    """Print the megabytes of the files that pip says it took, from an index or from a folder."""
    text, units = Path(log).read_text(encoding="utf-8", errors="replace"), {"B": 1e-6, "kB": 1e-3, "MB": 1, "GB": 1e3}
    fetched = re.findall(r"Downloading \S+ \(([\d.]+) (B|kB|MB|GB)\)", text)
    local = [Path(path) for path in re.findall(r"Processing (/\S+\.(?:whl|tar\.gz|zip))", text)]
    size = sum(float(number) * units[unit] for number, unit in fetched)
    size += sum(path.stat().st_size / 1e6 for path in local if path.exists())
    sys.stdout.write(f"{len(fetched) + len(local)} files, {size:.0f} MB\n")
    return []


def skipped(report: str) -> dict[str, str]:
    """Tests of a report that were skipped, and why; without those that need a GPU."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    found = {f"{case.get('classname')}::{case.get('name')}": case.find("skipped") for case in cases}
    reasons = {name: element.get("message") or "" for name, element in found.items() if element is not None}
    return {name: reason for name, reason in reasons.items() if not reason.startswith("needs a GPU")}


def skips(bare: str, full: str) -> list[str]:
    """Without extras, only what needs one is skipped, and nothing is skipped in both environments."""
    without, with_all = skipped(bare), skipped(full)
    found = [f"{name} was skipped: {reason}" for name, reason in without.items() if "needs the extra" not in reason]
    return found + [f"{name} is skipped with all extras too: {with_all[name]}" for name in without if name in with_all]


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
    """All configs are in the wheel; tests and results are not."""
    names = set(zipfile.ZipFile(path).namelist())
    configs = {f"whitebox/{config.as_posix()}" for config in Path("configs").rglob("*.yaml")}
    found = [f"the wheel lacks {name}" for name in sorted(configs - names)]
    parts = {"whitebox_seg.py", "whitebox", "analysis", "experiments"}
    found += [
        f"the wheel has {name}"
        for name in sorted(names)
        if not (name.split("/")[0] in parts or name.split("/")[0].endswith(".dist-info"))
    ]
    sys.stdout.write(f"{Path(path).name}: {len(names)} files, {len(configs)} configs\n")
    return found if configs else ["there are no configs"]


if __name__ == "__main__":
    checks = (downloads, line, repository, skips, startup, wheel)
    check = {function.__name__: function for function in checks}[sys.argv[1]]
    if problems := check(*sys.argv[2:]):
        sys.exit("\n".join(problems))
