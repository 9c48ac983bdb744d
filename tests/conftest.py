"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blank_pictures import save_blank

from whitebox.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent

# The fast tier, `pytest -m "not slow"`: under a minute on two cores, each command once. All other files are slow, and
# in these what is marked so.
FAST = {
    "analysis/maths/test_coding_rate.py",
    "analysis/maths/test_intervals.py",
    "analysis/maths/test_perturbation.py",
    "analysis/maths/test_resampling.py",
    "analysis/maths/test_subspaces.py",
    "analysis/show/test_figures.py",
    "analysis/show/test_render.py",
    "analysis/show/test_tables.py",
    "analysis/test_record.py",
    "cli/test_progress.py",
    "data/test_images.py",
    "data/test_readers.py",
    "data/test_sampler.py",
    "data/test_shapes.py",
    "data/test_units.py",
    "data/test_unpack.py",
    "engine/test_metrics.py",
    "engine/test_predict.py",
    "engine/test_stochastic_depth.py",
    "models/test_encoder.py",
    "models/test_losses.py",
    "models/test_segmentor.py",
    "models/test_unused.py",
    "models/test_weights.py",
    "test_catalog.py",
    "test_commands.py",
    "test_config.py",
    "test_files.py",
    "test_foreign.py",
    "test_repository.py",
    "test_text.py",
}


def pytest_sessionstart() -> None:
    """What is imported until all tests are collected stays, so nobody looks for garbage in it, then or later."""
    gc.disable()


def pytest_collection_finish() -> None:
    """See above; and later rarely: a suite ends before much garbage has come together."""
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what the fast tier leaves out."""
    named = collection_path.relative_to(TESTS).as_posix() if collection_path.is_relative_to(TESTS) else ""
    left_out = config.option.markexpr == "not slow" and named.endswith(".py") and named not in FAST
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is not in the fast tier."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix() not in FAST:
            item.add_marker(pytest.mark.slow)


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
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out, and there is nothing in their files: see blank_pictures.py."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)


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
