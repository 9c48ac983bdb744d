"""Other software in the same environment or working folder: what has our names, and an OpenCV that does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import whitebox
from whitebox.errors import ConfigError
from whitebox.extras import opencv_explained

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = ["-c", "from whitebox_seg import main; main()"]  # what the installed script does


def run(arguments: list[str], folder: Path, *paths: Path | str) -> subprocess.CompletedProcess[str]:
    """Python in ``folder``, with these folders first on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, REPOSITORY]))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_users_own_analysis_and_experiments(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    for own in ("analysis.py", "experiments/__init__.py"):
        (tmp_path / own).write_text("raise RuntimeError('of the user')")
    done = run(["-m", "whitebox", "reproduce", "--list"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "depict-fig5" in done.stdout


def test_a_users_other_modules_can_still_be_imported(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").touch()
    (tmp_path / "trackers_of_mine.py").write_text("print('imported')")
    code = "import sys; from whitebox_seg import main; sys.argv = ['whitebox', '--help']\ntry: main()\n"
    code += "except SystemExit: import analysis, trackers_of_mine; print(analysis.__file__)"
    done = run(["-c", code], tmp_path, ".")
    assert done.stdout.splitlines()[-2:] == ["imported", str(REPOSITORY / "analysis" / "__init__.py")]


def test_the_geospatial_package_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "whitebox").mkdir()
    (tmp_path / "whitebox" / "__init__.py").write_text("__version__ = '2.3.6'")
    done = run([*COMMAND, "train", "depict-ca-tiny"], tmp_path, tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"finds {tmp_path / 'whitebox' / '__init__.py'}, which is not of whitebox-seg" in done.stderr
    assert "pip uninstall whitebox" in done.stderr
    with pytest.raises(AttributeError, match="the geospatial package whitebox needs an environment of its own"):
        _ = whitebox.WhiteboxTools


def test_an_opencv_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "cv2").mkdir()
    reason = "libxcb.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2" / "__init__.py").write_text(f"raise ImportError({reason!r}, name='cv2')")
    done = run([*COMMAND, "predict", "nothing", "photo.jpg", "-o", "out"], tmp_path, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: OpenCV cannot be imported ({reason}): `pip install --force-reinstall")
    assert "opencv-python-headless" in done.stderr and "apt-get install libgl1 libglib2.0-0" in done.stderr


def test_an_opencv_that_is_half_uninstalled(tmp_path: Path) -> None:
    """What is left of the folder that two wheels share once one of them is uninstalled."""
    (tmp_path / "cv2" / "qt").mkdir(parents=True)
    code = f"import sys; sys.path = [{str(tmp_path)!r}]; import cv2; cv2.setNumThreads(0)"
    with pytest.raises(
        ConfigError, match=r"^OpenCV cannot be imported \(module 'cv2' has no attribute 'setNumThr.*less` br"
    ):
        with_other_modules(code)


def with_other_modules(code: str) -> None:
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "cv2"}
    path = list(sys.path)
    try:
        with opencv_explained():
            exec(code, {})
    finally:
        del sys.modules["cv2"]
        sys.modules.update(others)
        sys.path[:] = path


@pytest.mark.parametrize("error", [ImportError("no torch", name="torch"), AttributeError("x", name="y", obj=whitebox)])
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)), opencv_explained():
        raise error
