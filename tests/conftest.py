"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from whitebox.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep no checksums in the home of who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHITEBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors and sample data beside the checkout; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("WHITEBOX_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the folder `shared` beside the checkout")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path | None:
    """The folder of all golden vectors; None where only the committed ones are there (see golden_vectors)."""
    folder = Path(os.environ.get("WHITEBOX_SHARED", REPOSITORY.parent / "shared")) / "golden"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def mmseg() -> None:
    """mmsegmentation with its transforms and datasets registered; tests that need it are skipped elsewhere."""
    pytest.importorskip("mmseg.datasets", reason="needs the extra mmseg")


@pytest.fixture(scope="session")
def imagecorruptions() -> None:
    """The package that corrupts photos; tests that need it are skipped elsewhere."""
    pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``whitebox ARGUMENTS``; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["whitebox", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run
