"""Runs of the Hub: pushed to and fetched from a small one on this machine, which also cuts, damages and refuses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import READER, TOKEN, Hub, Repository
from huggingface_hub import ModelCard, constants
from PIL import Image
from tiny_runs import configured, tiny_model, tiny_run

import whitebox
from whitebox.cli import main
from whitebox.engine.checkpoint import save_model
from whitebox.engine.header import read_header
from whitebox.errors import CheckpointError, ConfigError
from whitebox.interop import hub as ours
from whitebox.interop.hub import Reference, weights_of

Call = Callable[..., tuple[int, str, str]]
NAME = "friends/shapes"
RUN = f"hf-hub:{NAME}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was evaluated."""
    made = tiny_run(tmp_path_factory.mktemp("run") / "sa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["whitebox", "eval", str(made), "--limit", "2", "--calibration"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub; the working folder is empty, the cache too, and somebody is logged in."""
    with hub_server.serve() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between attempts
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield made


def refused(call: Call, *arguments: object) -> str:
    """The one line of a command that failed; it holds no token."""
    code, out, err = call(*arguments)
    assert code in (1, 2) and err.startswith("error: ") and err.count("\n") == 1, err
    assert not any(token in out + err for token in (TOKEN, READER, "hf_wrong"))
    return err


def put(hub: Hub, run: Path, *, private: bool = False) -> Repository:
    """A run on the Hub, by hand."""
    repository = hub.repositories[NAME] = Repository(private)
    weights = run / "model.safetensors"
    folder = Path("put")
    folder.mkdir(exist_ok=True)
    config = ours.write_config(folder, read_header(weights), weights)
    repository.commit({"model.safetensors": weights.read_bytes(), "config.json": config.read_bytes()})
    return repository


# --- names


def test_names() -> None:
    assert Reference.of("results/run") is None
    assert Reference.of(Path("hf-hub:me/run")) == Reference("me/run")
    named = Reference.of(Path("hf-hub:me/run@refs/pr/1"))
    assert named is not None
    assert (named.name, named.folder, str(named)) == (
        "me/run@refs/pr/1",
        "me--run@refs--pr--1",
        "hf-hub:me/run@refs/pr/1",
    )
    for wrong in (
        "me",
        "me/run/x",
        "../run",
        "me/..",
        "me/a b",
        "",
        "me/run@",
        "me/run@../../x",
        "me/run@-x",
        "a--b/c",
    ):
        with pytest.raises(ConfigError, match="names no re"):
            Reference.of(f"hf-hub:{wrong}")


# --- push


def test_push_and_fetch(hub: Hub, run: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call("push", run, NAME, "--license", "mit")
    assert code == 0, err
    repository = hub.repositories[NAME]
    assert f"Pushed: {hub.address}/{NAME}/commit/{repository.names['main']}" in out and not repository.private
    files = repository.commits[repository.names["main"]]
    assert {"model.safetensors", "config.json", "README.md", "classes.png"} < files.keys()
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()

    pixels = torch.rand(1, 3, 40, 48)
    assert torch.equal(whitebox.load_model(RUN)(pixels), whitebox.load_model(run)(pixels))
    code, out, err = call("eval", RUN, "--limit", 2)
    assert code == 0, err
    (record,) = Path("results/friends--shapes/records").glob("eval-*.json")
    (own,) = (run / "records").glob("eval-*.json")
    theirs, mine = json.loads(record.read_text()), json.loads(own.read_text())
    assert theirs["measured"] == mine["measured"] and theirs["model"] == NAME
    assert theirs["weights"]["sha256"] == mine["weights"]["sha256"]
    assert Path("results/friends--shapes/tables").is_dir()

    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save("photo.png")
    assert call("predict", RUN, "photo.png", "-o", "out")[0] == 0 and Path("out/photo_overlay.jpg").is_file()
    assert call("orthogonality", RUN, "--draws", 2)[0] == 0
    assert call("compare", run, f"{RUN}@main", "--limit", 2)[0] == 0
    assert call("profile", RUN, "--size", 32, "--repeats", 1)[0] == 0


def test_the_page(hub: Hub, run: Path, call: Call, tmp_path: Path) -> None:
    """Nobody need be logged in to write it to a folder."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("street.png")
    code, _, err = call("push", run, NAME, "--to-folder", "page", "--picture", "street.png", "--license", "mit")
    assert code == 0, err
    assert hub.log == []
    (own,) = (run / "records").glob("eval-*.json")
    measured = json.loads(own.read_text())["measured"]
    card = ModelCard.load("page/README.md")
    assert card.data.library_name == "whitebox" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.license == "mit" and card.data.datasets == ["shapes"] and card.data.get("base_model") is None
    (result,) = card.data.eval_results or ()
    assert result.metric_value == round(measured["miou"]["value"], 4) and result.dataset_split == "val"
    assert "n = 2 images" in str(result.metric_config)
    text = card.text
    for said in (
        f'whitebox.load_model("hf-hub:{NAME}")',
        f"| disc | {100 * measured['per_class'][1]['iou']['value']:.1f}",
        "n = 2 images",
        "## Calibration (shapes val)",
        "one training, whose spread is unknown",
        "fingerprint `",
        "`whitebox eval ",
        "generated, none",
        "![street](street.png)",
        "random weights",
        json.loads(own.read_text())["weights"]["sha256"],
    ):
        assert said in text, said
    config = json.loads(Path("page/config.json").read_text())
    assert config["id2label"]["1"] == "disc" and config["architecture"]["name"] == "depict-sa"
    assert config["weights"]["sha256"] == json.loads(own.read_text())["weights"]["sha256"]
    assert call("eval", "page", "--limit", 2)[0] == 0  # it is a run
    assert "is there and not empty" in refused(call, "push", run, NAME, "--to-folder", "page")


def test_a_page_without_scores_says_so(hub: Hub, call: Call) -> None:
    other = tiny_run(Path("other"), seed=3)
    code, _, err = call("push", other, NAME, "--to-folder", "page")
    assert code == 0 and "No evaluation of these weights is recorded" in err
    card = ModelCard.load("page/README.md")
    assert "No evaluation of these weights is recorded" in card.text and not card.data.eval_results


def test_records_of_other_weights_are_not_shown(hub: Hub, run: Path, call: Call) -> None:
    assert call("eval", run, "--limit", 2, "-o", "apart", "--again")[0] == 0
    other = tiny_run(Path("other"), seed=3)
    assert call("push", other, NAME, "--to-folder", "page", "--records", "apart/records")[0] == 0
    assert "No evaluation" in Path("page/README.md").read_text()
    mine = tiny_run(Path("mine"))
    assert call("push", mine, NAME, "--to-folder", "own", "--records", "apart/records")[0] == 0
    assert "| disc |" in Path("own/README.md").read_text()
    assert "There is no folder of records none" in refused(
        call, "push", mine, NAME, "--to-folder", "x", "--records", "none"
    )


def test_private(hub: Hub, run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("push", run, NAME, "--private")[0] == 0
    assert hub.repositories[NAME].private
    whitebox.load_model(RUN)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_wrong_wrong")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "elsewhere")
    assert f"There is no {NAME} on the Hub that you may see" in refused(call, "eval", RUN)


def test_a_public_repository_does_not_become_private(hub: Hub, run: Path, call: Call) -> None:
    put(hub, run)
    before = dict(hub.repositories[NAME].names)
    assert "is there and public, so nothing was put into it" in refused(call, "push", run, NAME, "--private")
    assert hub.repositories[NAME].names == before


@pytest.mark.parametrize(
    ("token", "line"),
    [(None, "Nobody is logged in"), ("hf_wrong_wrong_wrong", "does not know your token"), (READER, "may not write to")],
)
def test_tokens(hub: Hub, run: Path, call: Call, monkeypatch: pytest.MonkeyPatch, token: str | None, line: str) -> None:
    if token is None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert line in refused(call, "push", run, NAME)
    assert NAME not in hub.repositories


def test_nothing_of_a_token_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    said = ours.scrubbed("Bearer odd-token, hf_abcdefghijk at http://me:secret@proxy:80/x")
    assert said == "Bearer ***, *** at http://***@proxy:80/x"


def test_an_upload_that_breaks_off(hub: Hub, run: Path, call: Call) -> None:
    hub.refuse_uploads = True
    assert f"Nothing was put into {NAME} (" in refused(call, "push", run, NAME)
    assert all("README.md" not in files for files in hub.repositories[NAME].commits.values())
    hub.refuse_uploads = False
    assert call("push", run, NAME)[0] == 0
    assert "README.md" in hub.repositories[NAME].commits[hub.repositories[NAME].names["main"]]


def test_an_upload_that_is_damaged(hub: Hub, run: Path, call: Call) -> None:
    hub.damage_uploads = True
    assert f"model.safetensors did not arrive at {NAME} as it is" in refused(call, "push", run, NAME)


def test_what_is_no_run(hub: Hub, run: Path, call: Call, tmp_path: Path) -> None:
    assert "names no repository" in refused(call, "push", run, "shapes")
    assert "There is no file or folder nothing" in refused(call, "push", "nothing", NAME)
    assert "There is no picture none.png" in refused(call, "push", run, NAME, "--picture", "none.png")
    Path("family").mkdir()
    for seed in (0, 1):
        tiny_run(Path("family") / f"seed-{seed}", seed=seed, train__seed=seed)
    assert "push one of them, as family/seed-0" in refused(call, "push", "family", NAME)
    assert hub.log == []


# --- fetch


def test_revisions(hub: Hub, run: Path, tmp_path: Path, call: Call) -> None:
    repository = put(hub, run)
    first = repository.names["main"]
    put_other = tiny_run(Path("other"), seed=3) / "model.safetensors"
    config = ours.write_config(Path("put"), read_header(put_other), put_other)
    repository.commit({"model.safetensors": put_other.read_bytes(), "config.json": config.read_bytes()})
    repository.names["v1"] = first
    pixels = torch.rand(1, 3, 40, 48)
    old, new = whitebox.load_model(run)(pixels), whitebox.load_model("other")(pixels)
    assert torch.equal(whitebox.load_model(RUN)(pixels), new)
    assert torch.equal(whitebox.load_model(f"{RUN}@v1")(pixels), old)
    asked = len(hub.log)
    assert torch.equal(whitebox.load_model(f"{RUN}@{first}")(pixels), old)
    assert len(hub.log) == asked  # a commit that is there is not asked for
    assert f"{NAME} has no revision v2" in refused(call, "eval", f"{RUN}@v2")
    assert call("eval", RUN, f"{RUN}@v1", "--limit", 2, "-o", "both")[0] == 0
    (table,) = Path("both/tables").glob("eval-*2_models*.csv")
    assert [row.split(",")[0] for row in table.read_text().splitlines()[1:]] == [NAME, f"{NAME}@v1"]


def test_a_newer_commit_is_fetched(hub: Hub, run: Path) -> None:
    repository = put(hub, run)
    before = weights_of(RUN).read_bytes()
    other = tiny_run(Path("other"), seed=3) / "model.safetensors"
    config = ours.write_config(Path("put"), read_header(other), other)
    repository.commit({"model.safetensors": other.read_bytes(), "config.json": config.read_bytes()})
    assert weights_of(RUN).read_bytes() == other.read_bytes() != before


def test_a_download_that_breaks_off_goes_on(hub: Hub, run: Path) -> None:
    put(hub, run)
    hub.cut = 2
    assert weights_of(RUN).read_bytes() == (run / "model.safetensors").read_bytes()
    assert hub.cut == 0


def test_a_download_that_always_breaks_off(hub: Hub, run: Path, call: Call) -> None:
    put(hub, run)
    hub.cut, hub.cut_after = 100, 0
    assert f"{RUN} could not be fetched (" in refused(call, "eval", RUN)
    hub.cut = 0
    assert weights_of(RUN).is_file()


def test_a_download_that_is_damaged_is_thrown_away(hub: Hub, run: Path, call: Call) -> None:
    put(hub, run)
    hub.damage = 1
    assert "the checksum differs), and was thrown away" in refused(call, "eval", RUN)
    assert weights_of(RUN).read_bytes() == (run / "model.safetensors").read_bytes()


def test_other_repositories(hub: Hub, run: Path, call: Call) -> None:
    assert f"There is no {NAME} on the Hub that you may see" in refused(call, "eval", RUN)
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"README.md": b"a page"})
    assert f"{NAME} holds no model.safetensors: it is no run of whitebox" in refused(call, "predict", RUN, "a.png")
    hub.repositories[NAME].commit({"model.safetensors": (run / "model.safetensors").read_bytes()})
    assert weights_of(RUN).is_file()  # without config.json, too
    hub.repositories[NAME].commit({"config.json": b"[1"})
    assert "config.json of hf-hub:friends/shapes cannot be read" in refused(call, "eval", RUN)


def test_offline(
    hub: Hub, run: Path, call: Call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(hub, run)
    weights_of(RUN)
    address = hub.address
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_of(RUN).is_file()
    line = refused(call, "eval", f"{RUN}@v1")
    assert f"{RUN}@v1 is not in the cache, and the Hub is not asked (HF_HUB_OFFLINE is set)" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING, "whitebox"):
        assert weights_of(RUN).is_file()
    assert "The Hub does not answer" in caplog.text and f"{RUN} is what the cache has of it" in caplog.text
    assert "could not be fetched (" in refused(call, "eval", f"{RUN}@v1")
    assert "Nothing was put into" in refused(call, "push", run, NAME)
    assert time.perf_counter() - start < 30 and hub.address == address


# --- a decoder alone


def test_a_decoder_alone(hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its encoder came from a file, others lack that: it is put in, or nothing is pushed."""
    whole = tiny_model(configured("depict-sa-tiny"))
    tensors = {name.removeprefix("encoder."): each for name, each in whole.state_dict().items() if "encoder." in name}
    Path("weights").mkdir()
    torch.save({f"encoder.{name}": each for name, each in tensors.items()}, "weights/vit.pth")
    file = os.path.abspath("weights/vit.pth")
    config = configured("depict-sa-tiny", encoder__frozen=True, encoder__weights=file)
    from whitebox.data.shapes import CLASSES
    from whitebox.models import build

    model = build(config.encoder, config.decoder, len(CLASSES), CLASSES).eval()
    save_model(Path("run/model.safetensors"), model, config)
    assert "put it in with --whole" in refused(call, "push", "run", NAME)
    code, _, err = call("push", "run", NAME, "--whole")
    assert code == 0
    assert f"names folders of this machine: encoder.weights={file}" in err
    Path("weights/vit.pth").unlink()
    pixels = torch.rand(1, 3, 40, 48)
    assert torch.equal(whitebox.load_model(RUN)(pixels), model(pixels))
    said = hub.repositories[NAME].commits[hub.repositories[NAME].names["main"]]
    assert file not in said["config.json"].decode() and "vit.pth" in said["config.json"].decode()


def test_as_the_environment_says(run: Path, tmp_path: Path) -> None:
    """A process of its own, which is told of the Hub by HF_ENDPOINT, as users of a mirror tell it."""
    with hub_server.serve() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        program = (
            "import sys; from whitebox.cli import main\n"
            "for line in (['push', sys.argv[1], 'a/b', '--private'], ['eval', 'hf-hub:a/b', '--limit', '2']):\n"
            "    sys.argv = ['whitebox', *line]\n"
            "    try: main()\n"
            "    except SystemExit as end: assert not end.code\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(run)], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert hub.repositories["a/b"].private and list((tmp_path / "results/a--b/records").glob("eval-*.json"))
        assert TOKEN not in done.stdout + done.stderr


def test_a_broken_reference_is_said_before_the_client_is_loaded() -> None:
    with pytest.raises(ConfigError, match="names no repository of the Hub"):
        whitebox.load_model("hf-hub:x")
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        whitebox.load_model("hf-hubx:me/run")
