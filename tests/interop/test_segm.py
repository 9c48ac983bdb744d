"""Official checkpoints: told apart by their tensors, loaded strictly, and never trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from golden_vectors import CASES, vector_file

import whitebox
from whitebox.api import load_run
from whitebox.data import build_dataset
from whitebox.errors import CheckpointError, ConfigError
from whitebox.interop.segm import read_variant


@pytest.fixture
def official(golden: Path | None, tmp_path: Path) -> Path:
    """A copy of an official DEPICT-SA run that a test may damage."""
    for name in ("checkpoint.pth", "variant.yml"):
        shutil.copyfile(vector_file(golden, "depict_sa", name), tmp_path / name)
    return tmp_path


def edit_variant(folder: Path, old: str, new: str) -> None:
    text = (folder / "variant.yml").read_text()
    assert old in text
    (folder / "variant.yml").write_text(text.replace(old, new))


def edit_tensors(folder: Path, change: object) -> None:
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    change(state["model"])
    torch.save(state, folder / "checkpoint.pth")


@pytest.mark.parametrize("case", [*CASES, "cbsa", "cbsa_deit"])
def test_decoders_are_told_apart(case: str, golden: Path | None) -> None:
    path = vector_file(golden, case, "checkpoint.pth")
    model, config = load_run(path)
    name = case.removesuffix("_deit").replace("_", "-")
    assert config.decoder.name == name
    assert model.load_report is not None
    assert model.load_report.matched == len(torch.load(path, weights_only=True)["model"])
    assert str(model.load_report) == (
        f"{path}: official checkpoint, {name}; all {model.load_report.matched} tensors matched"
    )
    assert not model.training


def test_the_folder_is_enough(official: Path) -> None:
    image = torch.rand(1, 3, 64, 64)
    by_folder, by_file = whitebox.load_model(official), whitebox.load_model(official / "checkpoint.pth")
    assert torch.equal(by_folder(image), by_file(image))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_saved_from_a_wrapped_model(official: Path, prefix: str) -> None:
    image, expected = torch.rand(1, 3, 64, 64), whitebox.load_model(official)
    state = torch.load(official / "checkpoint.pth", weights_only=True)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state["model"].items()}
    torch.save({"state_dict": wrapped, "optimizer": state.get("optimizer")}, official / "checkpoint.pth")
    assert torch.equal(whitebox.load_model(official)(image), expected(image))


def test_cbsa_is_described_by_its_tensors(golden: Path | None) -> None:
    model, config = load_run(vector_file(golden, "cbsa_deit", "checkpoint.pth"))
    decoder = config.decoder
    assert (decoder.layers, decoder.heads, decoder.head_dim, decoder.pool) == (3, 3, 100, 10)
    assert model.num_classes == 150


def test_training_snapshots_load_too(shared: Path) -> None:
    for name in ("train_depict_sa", "train_depict_ca"):
        whitebox.load_model(shared / "golden" / name / "checkpoint.pth")


def test_classes_of_the_dataset_where_they_fit(official: Path, shared: Path) -> None:
    assert whitebox.load_model(official).classes[0] == "class 0"  # 7 classes are not ADE20K's

    def as_ade20k(tensors: dict[str, torch.Tensor]) -> None:
        tensors["decoder.cls_emb"] = torch.zeros(1, 150, 48)
        tensors["decoder.mask_norm.weight"] = tensors["decoder.mask_norm.bias"] = torch.zeros(150)

    edit_tensors(official, as_ade20k)
    edit_variant(official, "n_cls: 7", "n_cls: 150")
    assert whitebox.load_model(official).classes[:3] == ("wall", "building", "sky")


@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "vit_base_patch16_224_in21k", "resnet18", "unknown"])
def test_the_name_of_the_backbone_decides_nothing(official: Path, backbone: str) -> None:
    image = torch.rand(1, 3, 32, 96)  # its positions are resampled
    before = whitebox.load_model(official)(image)
    edit_variant(official, "backbone: vit_golden_patch16_64", f"backbone: {backbone}")
    assert torch.equal(whitebox.load_model(official)(image), before)


def test_a_dataset_we_do_not_have(official: Path) -> None:
    edit_variant(official, "dataset: ade20k", "dataset: kitti")
    _, config = load_run(official)
    assert config.data.name == "kitti"
    with pytest.raises(ConfigError, match=r"Nothing is known of the dataset 'kitti': name one .* with --dataset"):
        build_dataset(config.data, "val", augment=False)


def test_settings_of_the_variant_are_kept(official: Path) -> None:
    edit_variant(official, "window_stride: 64", "window_stride: 48")
    _, config = load_run(official)
    assert (config.inference.window, config.inference.stride) == (64, 48)
    assert (config.data.kind, config.data.resize, config.data.crop) == ("ade20k", 64, 64)
    assert (config.encoder.drop_path, config.encoder.image_size) == (0.1, 64)


class TestBadInput:
    def test_no_variant(self, official: Path) -> None:
        (official / "variant.yml").unlink()
        with pytest.raises(CheckpointError, match=r"There is no .*variant.yml: an official checkpoint.pth needs"):
            whitebox.load_model(official)

    def test_variant_with_another_python_tag(self, official: Path) -> None:
        trap = official / "ran"
        text = f"net_kwargs:\n  image_size: !!python/object/apply:os.system ['touch {trap}']\n"
        (official / "variant.yml").write_text(text)
        with pytest.raises(CheckpointError, match=r"variant.yml cannot be read as plain YAML"):
            whitebox.load_model(official)
        assert not trap.exists()

    def test_variant_tuple_is_a_tuple(self, official: Path) -> None:
        assert read_variant(official / "variant.yml")["net_kwargs"]["image_size"] == (64, 64)
        with pytest.raises(yaml.YAMLError):
            yaml.safe_load((official / "variant.yml").read_text())

    @pytest.mark.parametrize(
        ("old", "new"),
        [("  decoder:\n", "  decoder: linear\n  decoder_of_old:\n"), ("!!python/tuple\n  - 64\n  - 64", "many")],
    )
    def test_variant_with_values_of_other_kinds(self, official: Path, old: str, new: str) -> None:
        edit_variant(official, old, new)
        with pytest.raises(CheckpointError, match="do not describe a model"):
            whitebox.load_model(official)

    @pytest.mark.parametrize("section", ["dataset_kwargs", "inference_kwargs"])
    def test_variant_with_a_list_for_a_section(self, official: Path, section: str) -> None:
        edit_variant(official, f"{section}:", f"{section}: [1]\n{section}_of_old:")
        with pytest.raises(CheckpointError, match="do not describe a model"):
            whitebox.load_model(official)

    @pytest.mark.parametrize("text", ["", "- 1", "epochs: 3", "a: [1"])
    def test_variant_of_something_else(self, official: Path, text: str) -> None:
        (official / "variant.yml").write_text(text)
        with pytest.raises(CheckpointError, match=r"variant.yml"):
            whitebox.load_model(official)

    def test_variant_without_heads(self, official: Path) -> None:
        edit_variant(official, "    n_heads: 2\n", "")
        with pytest.raises(CheckpointError, match=r"do not describe a model: KeyError\('n_heads'\)"):
            whitebox.load_model(official)

    def test_heads_that_do_not_divide(self, official: Path) -> None:
        edit_variant(official, "    n_heads: 2\n", "    n_heads: 7\n")
        with pytest.raises(CheckpointError, match="200 rows of a basis cannot be shared by 7 heads"):
            whitebox.load_model(official)

    def test_other_number_of_classes(self, official: Path) -> None:
        edit_variant(official, "  n_cls: 7\n  n_heads", "  n_cls: 150\n  n_heads")
        with pytest.raises(CheckpointError, match=r"has 7 classes but its variant.yml says 150"):
            whitebox.load_model(official)

    def test_cut_short(self, official: Path) -> None:
        path = official / "checkpoint.pth"
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(CheckpointError, match=r"checkpoint.pth is cut short or not a torch file"):
            whitebox.load_model(official)

    def test_evil_pickle(self, official: Path) -> None:
        trap = official / "ran"

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (trap,)

        torch.save({"model": {"encoder.pos_embed": Evil()}}, official / "checkpoint.pth")
        with pytest.raises(CheckpointError, match="holds more than tensors and is not opened"):
            whitebox.load_model(official)
        assert not trap.exists()

    def test_missing_tensor(self, official: Path) -> None:
        edit_tensors(official, lambda tensors: tensors.pop("decoder.net.layers.1.fn.step_size"))
        with pytest.raises(CheckpointError, match=r"1 missing \(first: decoder.layers.1.step_size\)"):
            whitebox.load_model(official)

    def test_unexpected_tensor(self, official: Path) -> None:
        edit_tensors(official, lambda tensors: tensors.update(extra=torch.zeros(1)))
        with pytest.raises(CheckpointError, match=r"1 unexpected \(first: extra\)"):
            whitebox.load_model(official)

    def test_tensor_of_another_shape(self, official: Path) -> None:
        edit_tensors(official, lambda tensors: tensors.update({"encoder.norm.bias": torch.zeros(3)}))
        with pytest.raises(CheckpointError, match=r"encoder.vit.norm.bias is \(3,\), the model needs \(48,\)"):
            whitebox.load_model(official)

    def test_of_another_project(self, official: Path) -> None:
        torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, official / "checkpoint.pth")
        with pytest.raises(CheckpointError, match="is no DEPICT, CBSA or Segmenter checkpoint"):
            whitebox.load_model(official)
        torch.save([1, 2], official / "checkpoint.pth")
        with pytest.raises(CheckpointError, match="is no DEPICT, CBSA or Segmenter checkpoint"):
            whitebox.load_model(official)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="There is no file or folder"):
            whitebox.load_model(tmp_path / "none")
        with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor an official checkpoint.pth"):
            whitebox.load_model(tmp_path)
