"""Checks of .ci/run that are more than one command: ``python .ci/check.py NAME ARGUMENTS``; exit code 1 if unwell."""

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


def skips(report: str) -> list[str]:
    """No test is skipped, except those that need a GPU."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    skipped = [(case, case.find("skipped")) for case in cases]
    found = [
        f"{case.get('classname')}::{case.get('name')} was skipped: {reason.get('message')}"
        for case, reason in skipped
        if reason is not None and not (reason.get("message") or "").startswith("needs a GPU")
    ]
    return found


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
    check = {"repository": repository, "skips": skips, "startup": startup, "wheel": wheel}[sys.argv[1]]
    if problems := check(*sys.argv[2:]):
        sys.exit("\n".join(problems))
