"""What is published follows from its records: tables byte by byte, and no file that no page shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.record import Record, read_records
from experiments import EXPERIMENTS, PAPERS, STUDIES, cbsa, foundation, open_shapes, sed
from experiments.experiment import Setting, beside
from experiments.foundation import Foundation
from whitebox.config import resolve

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
CAMVID = RESULTS / "camvid"
FOUNDATION = RESULTS / "foundation"
Call = Callable[..., tuple[int, str, str]]


def tables(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("**/tables/*.md")}


def test_a_study_gives_its_tables_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    published = tables(CAMVID)
    STUDIES["camvid"].show(CAMVID, tmp_path, figures=False)
    drawn = tables(tmp_path)
    assert len(published) > 30 and {name: drawn.get(name) for name in published} == published
    assert not list(tmp_path.rglob("*.png"))


def test_the_foundation_study_gives_its_tables_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of all decoders follow from the records of single trainings, those of families from nothing else."""
    monkeypatch.chdir(REPOSITORY)
    published = tables(FOUNDATION)
    copied = tmp_path / "foundation"
    for records in FOUNDATION.glob("*/seed-*/records"):
        shutil.copytree(records, copied / records.relative_to(FOUNDATION))
    study = Foundation(dataset="camvid", encoder="dinov2-small", size="small", seeds=foundation.SEEDS, folder=copied)
    study.show(Setting(), tmp_path / "shown", figures=False)
    drawn = tables(tmp_path / "shown")
    assert {"tables/overview.md", "tables/claims.md"} <= published.keys()
    assert {name: drawn.get(name) for name in published} == published
    page, short = (
        (REPOSITORY / path).read_text("utf-8") for path in ("results/foundation/README.md", "docs/results.md")
    )
    for name in ("overview", "claims-pairs", "claims-layers"):  # which the page shows whole
        assert (FOUNDATION / "tables" / f"{name}.md").read_text("utf-8").strip() in page
    assert (FOUNDATION / "tables" / "overview.md").read_text("utf-8").strip() in short


def test_open_shapes_gives_its_tables_back(tmp_path: Path) -> None:
    folder = RESULTS / "open-shapes"
    shutil.copytree(folder / "records", tmp_path / "records")
    open_shapes.show(tmp_path)
    assert tables(tmp_path) == tables(folder) != {}
    page = (folder / "README.md").read_text("utf-8")
    for name in ("answers", "words-held-out-all"):  # which the page shows whole
        assert (folder / "tables" / f"{name}.md").read_text("utf-8").strip() in page


def test_render_gives_them_back_too(tmp_path: Path, call: Call) -> None:
    code, _, err = call("render", CAMVID, "-o", tmp_path, "--tables")
    assert code == 0, err
    drawn = tables(tmp_path)
    for place in ("analysis", "comparison", "robustness"):
        published = {name: text for name, text in tables(CAMVID).items() if name.startswith(f"{place}/")}
        assert published and {name: drawn.get(name) for name in published} == published


KINDS = {"tab1": "eval", "tables": "eval", "performance": "tradeoff", "noise": "parameter-noise"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/camvid/tables/*-reported.md")), ids=lambda path: path.stem)
def test_measured_beside_reported(path: Path) -> None:
    experiment = EXPERIMENTS[path.stem.removesuffix("-reported")]
    kind = KINDS[experiment.name.rpartition("-")[2]]
    models = {f"{decoder}-tiny-camvid": f"{decoder}-tiny" for decoder in experiment.decoders}
    folders = [path.parents[1] / "records", *(CAMVID / name / "records" for name in models)]
    found: dict[str, Record] = {}
    for record in (each for folder in folders for each in read_records(folder, kind)):
        if record.data.split == "val" and record.variant in ("", "decoder") and record.model in models:
            found.setdefault(record.model, record)
    table = beside(experiment, [found[name] for name in models], models)
    assert table is not None and table.to_markdown() == path.read_text("utf-8")


def linked() -> dict[Path, Path]:
    """What pages link, and which page does."""
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *RESULTS.rglob("README.md")]
    return {
        (page.parent / target).resolve(): page
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text("utf-8"))
        if "://" not in target
    }


def test_pages_link_what_is_there_and_all_that_is_drawn() -> None:
    known = linked()
    assert [f"{page}: {target}" for target, page in known.items() if not target.exists()] == []
    own = {path.parent for path in RESULTS.rglob("model.safetensors")}  # runs of who works here; we publish no weights
    rendered = (path for path in RESULTS.rglob("*") if path.parent.name in ("figures", "tables"))
    drawn = [path for path in rendered if not own & set(path.parents)]
    assert [path for path in drawn if path.resolve() not in known] == []


def test_all_records_are_read_and_belong_to_runs_we_name() -> None:
    of_studies = [RESULTS / name for name in (*STUDIES, *PAPERS)]
    for folder in sorted(RESULTS.rglob("records")):
        records = read_records(folder)
        assert records, folder
        if any(folder.is_relative_to(study) for study in of_studies):
            assert {record.model for record in records} <= set(STUDIES["camvid"].runs)


def test_a_study_names_runs_that_can_be_trained() -> None:
    for study in STUDIES.values():
        assert study.name not in PAPERS
        for run in study.runs.values():
            assert resolve(run.model, study.dataset, [*study.recipe, *run.overrides]).train.epochs == 30
        assert {name for step in study.steps for name in step.runs} == set(study.runs)


def test_the_command_of_a_study(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("reproduce", "camvid", "--model-size", "small")
    assert code == 2 and err.count("\n") == 1 and "camvid is a study of fixed models and data" in err
    code, out, _ = call("reproduce", "--list")
    assert code == 0 and "nine decoders on CamVid" in " ".join(out.split())
    code, _, err = call("reproduce", "camvit")
    assert code == 2 and "did you mean 'camvid'?" in err


def test_the_table_of_models_reports_what_papers_report() -> None:
    page = (REPOSITORY / "docs" / "models.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|(?:[^|]*\|){3} ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    assert len(rows) > 30
    reported = {model: clean for model, (clean, _) in cbsa.NOISE_MIOU.items() if model.startswith("tost")}
    for numbers in (sed.ZERO_SHOT, *(experiment.reported for experiment in EXPERIMENTS.values())):
        for each in numbers:
            if (each.quantity, each.data) == ("mIoU (%)", "ADE20K val"):
                reported[each.model] = each.value
    stated = {model: float(text.split()[0].lstrip("~")) for model, text, _ in rows if text.strip()}
    assert stated == reported
    for model, _, ours in rows:
        if ours.strip():
            evaluations = read_records(CAMVID / f"{model}-camvid" / "records", "eval")
            (miou,) = (each.measured["miou"] for each in evaluations if each.data.split == "val")
            value, low, high = (100 * miou[key] for key in ("value", "low", "high"))
            assert ours.strip() == f"{value:.1f} [{low:.1f}, {high:.1f}]"
