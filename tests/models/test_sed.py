"""SED equals the official code step by step, in chunks, and under early rejection; see tests/sed_vectors.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exporting import OfScales, check_export
from sed_vectors import Case, aggregator, clip_name, relative, whole_model
from torch import Tensor

from analysis.measures.costs import count
from whitebox.errors import ConfigError, ModelError
from whitebox.interop.sed import LAYER_NAMES, our_name
from whitebox.models import DECODERS, CLIPConfig, CLIPEncoder, EncoderConfig, OpenSegmentor, build, record, replace
from whitebox.models.decoders import sed
from whitebox.models.decoders.sed import SED, SEDConfig
from whitebox.models.losses import BinaryCrossEntropy
from whitebox.models.weights import renamed
from whitebox.names import OPEN_VOCABULARY

FORWARD, GRADIENT, TINY_GRADIENT = 2e-5, 1e-4, 5e-3  # of the largest value, as the vectors say


def layer_tensors(weights: dict[str, Tensor], part: str, official: str = "") -> dict[str, Tensor]:
    """Tensors of one part of a layer, by our names in it."""
    ours = {renamed(official + name, LAYER_NAMES): tensor for name, tensor in weights.items()}
    return {name.removeprefix(f"{part}."): tensor for name, tensor in ours.items()}


def small(num_classes: int = 7, text: int = 0, **changes: object) -> tuple[SED, list[Tensor]]:
    """A small decoder with random weights, names and maps of two images."""
    torch.manual_seed(text)
    config = SEDConfig(hidden=32, widths=[32, 16, 16], guidance=[8, 8, 4], kernels=[5, 5, 3], **changes)
    decoder = SED(config, [10, 8, 6], 12, 5, num_classes).eval()
    decoder.text_TPD = F.normalize(torch.randn(num_classes, 5, 12), dim=-1)
    sides = (24, 12, 6, 3)
    maps = [torch.randn(2, width, side, side + 1) for width, side in zip((6, 8, 10, 12), sides, strict=True)]
    for level, side in enumerate(sides):  # a grid that is not square, doubled
        maps[level] = torch.randn(2, (6, 8, 10, 12)[level], side, side // 3 * 4)
    return decoder, maps


# ------------------------------------------------------------------------------------------------- official vectors


@pytest.mark.parametrize("name", ["sed_aggregator_default", "sed_aggregator_textguided_full"])
def test_decoder_equals_the_official_one(shared: Path, name: str) -> None:
    case = Case(shared / "golden", name)
    decoder, maps = aggregator(case)
    assert relative(sed.cost_volume(maps[-1], decoder.text_TPD).transpose(1, 2), case["mid.cost_volume"]) < FORWARD
    for prefix, pool in (("out", decoder.config.pool), ("out_pool1", 1)):
        if f"{prefix}.logits" not in case.tensors:
            continue
        object.__setattr__(decoder.config, "eval_pool", pool)
        said = decoder.predict(maps)
        assert relative(said.masks_BKhw, case[f"{prefix}.logits"]) < FORWARD
        for index, earlier in enumerate(said.earlier):
            assert relative(earlier.masks_BKhw, case[f"{prefix}.aux{index}"]) < FORWARD
        with torch.no_grad():
            for decoder.chunk in (None, 1, 3):
                assert relative(decoder(maps), case[f"{prefix}.logits"]) < FORWARD


def test_gradients_of_the_decoder_equal_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_aggregator_default")
    decoder, maps = aggregator(case)
    maps[-1].requires_grad_()
    said = decoder.predict(maps)
    outputs = [said.masks_BKhw, *(each.masks_BKhw for each in said.earlier)]
    sum((each * case[f"in.gradweight{i}"]).mean() for i, each in enumerate(outputs)).backward()
    assert relative(maps[-1].grad, case["grad.img_feats"]) < GRADIENT
    parameters = dict(decoder.named_parameters())
    compared = 0
    for name in case.weights:
        for key in (f"grad.param.{name}", f"grad.{name}"):
            if key in case.tensors:
                tiny = ".attention.attention.q" in name or ".attention.attention.k" in name
                gradient = parameters[sed_name(name)].grad
                assert relative(gradient, case[key]) < (TINY_GRADIENT if tiny else GRADIENT), name
                compared += 1
    assert compared > 0


def sed_name(official: str) -> str:
    return our_name(f"sem_seg_head.predictor.transformer.{official}").removeprefix("decoder.")


def test_early_rejection_equals_the_official_one(shared: Path) -> None:
    case = Case(shared / "golden", "sed_aggregator_early_rejection")
    decoder, maps = aggregator(case)
    with torch.no_grad():
        assert relative(decoder(maps), case["full.out.logits"]) < FORWARD
        for k, counts in case.facts["extra"]["kept_per_stage"].items():
            decoder.topk = int(k)
            with record(decoder, "layers.*.kept") as kept:
                masks = decoder(maps)
            assert relative(masks.sigmoid(), case[f"top{k}.out.prob"]) < FORWARD
            alive = torch.arange(masks.shape[1])
            for stage, count in enumerate(counts):
                alive = alive[case[f"top{k}.mid.valid{stage}"].bool()]
                assert kept[f"layers.{stage}.kept"][0].nonzero()[:, 0].tolist() == alive.tolist()
                assert len(alive) == count


def test_parts_of_a_layer_equal_the_official_ones(shared: Path) -> None:
    golden = shared / "golden"
    block = Case(golden, "sed_convnext_block")
    spatial = sed.SpatialBlock(16, 9)
    spatial.load_state_dict(layer_tensors(block.weights, "spatial", "cnext."))
    assert relative(spatial(block["in.x"]), block["out.x"]) < FORWARD

    for name, pool in (("sed_class_layer_linear", 2), ("sed_class_layer_full_guided", 1)):
        case = Case(golden, name)
        official = case.facts["kwargs"]
        attention = sed.ClassAttention(
            official["hidden_dim"], official["nheads"], official["attention_type"], official["guidance_dim"]
        )
        attention.load_state_dict(layer_tensors(case.weights, "classes", "attention."))
        inputs = [key for key in case.tensors if key.startswith("in.x")]
        for key in inputs:
            guidance = case.tensors.get("in.guidance")
            for image, x_CThw in enumerate(case[key]):
                found = attention(x_CThw.transpose(0, 1)[None], pool, None if guidance is None else guidance[image])
                expected = case[key.replace("in.", "out.")][image].transpose(0, 1)[None]
                assert relative(found, expected) < FORWARD

    stage = Case(golden, "sed_up_stage")
    official = stage.facts["kwargs"]
    config = SEDConfig(heads=official["nheads"], attention=official["attention_type"])
    channels, out, guidance = (official[f"{key}_channels"] for key in ("in", "out", "guidance"))
    layer = sed.Layer(channels, out, guidance, official["kernel_size"], config)
    layer.load_state_dict({renamed(name, LAYER_NAMES): tensor for name, tensor in stage.weights.items()})
    found = layer(stage["in.x"], stage["in.guidance"], stage["in.corr_guidance"], 2, None)
    assert relative(found, stage["out.x"]) < FORWARD

    swin = Case(golden, "sed_swin_wrapper")
    official = swin.facts["kwargs"]
    blocks = sed.SwinBlocks(official["dim"], official["nheads"], official["window_size"])
    blocks.load_state_dict({name: each for name, each in swin.weights.items() if not name.endswith("attn_mask")})
    assert relative(blocks(swin["in.x"]), swin["out.x"]) < FORWARD

    kernels = Case(golden, "sed_attention_kernels")
    q, k, v = (kernels[f"in.{each}"] for each in "qkv")
    assert relative(sed.linear_attention(q, k, v), kernels["out.linear"]) < FORWARD
    assert relative(sed.full_attention(q, k, v), kernels["out.full"]) < FORWARD


def test_epsilons_equal_the_official_ones_where_activations_are_small(shared: Path) -> None:
    tensors = Case(shared / "golden", "sed_small_activations").tensors
    own = {
        part: {name.removeprefix(f"{part}.weight."): each for name, each in tensors.items() if f"{part}.weight" in name}
        for part in ("class_layer", "convnext")
    }
    attention = sed.ClassAttention(32, 4, "linear")
    attention.load_state_dict(layer_tensors(own["class_layer"], "classes", "attention."))
    found = attention(tensors["class_layer.in"].transpose(1, 2), 1).transpose(1, 2)
    assert relative(found, tensors["class_layer.out"]) < FORWARD
    spatial = sed.SpatialBlock(32, 9)
    spatial.load_state_dict(layer_tensors(own["convnext"], "spatial", "cnext."))
    assert relative(spatial(tensors["convnext.in"]), tensors["convnext.out"]) < FORWARD


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_dense_clip_features_equal_the_official_ones(shared: Path, projection: str) -> None:
    case = Case(shared / "golden", f"sed_clip_dense_{projection}")
    official = case.facts["kwargs"]
    sizes = official["timm_ConvNeXt"]
    encoder = CLIPEncoder(
        CLIPConfig(
            image_size=64,
            depths=sizes["depths"],
            widths=sizes["dims"],
            embed=official["embed_dim"],
            projection=projection,
            drop_path=official["drop_path"],
            dropout=official["drop"],
            text_width=8,
            text_heads=1,
            text_layers=1,
            vocabulary=8,
        )
    ).eval()
    ours = {clip_name(f"visual.{name}"): tensor for name, tensor in case.weights.items()}
    missing = encoder.load_state_dict(ours, strict=False)
    assert missing.unexpected_keys == [] and all(n.startswith(("text.", "logit_")) for n in missing.missing_keys)
    maps = encoder.maps(case["in.x"], encoder.strides)
    for level, found in enumerate(maps, start=2):
        assert relative(found, case[f"out.res{level}"]) < FORWARD
    assert relative(encoder.embedded(maps[-1]), case["out.clip_vis_dense"]) < FORWARD


def test_whole_model_equals_the_official_one(shared: Path) -> None:
    case = Case(shared / "golden", "sed_model_e2e")
    model = whole_model(case, case.facts["kwargs"]["test_classes"])
    model.set_vocabulary(model.classes, features_TPD=case["mid.text_features_test"])
    image = case["in.eval.image"][None].to(torch.uint8)
    with torch.no_grad():
        maps, _ = model.encode(image)
        assert relative(maps[-1], case["mid.eval.clip_vis_dense"]) < FORWARD
        said = model.predict(image)
        assert relative(said.masks_BKhw, case["mid.eval.logits"]) < FORWARD
        size = tuple(case.facts["kwargs"]["eval_output_hw"])
        assert relative(model.probabilities(said, size)[0], case["out.eval.prob"]) < FORWARD
        model.decoder.topk = 1
        assert relative(model.probabilities(model.predict(image), size)[0], case["out.eval.prob_fast_top1"]) < FORWARD


@pytest.mark.parametrize("mode", ["full", "fast_infer"])
def test_losses_and_gradients_of_the_whole_model_equal_the_official_ones(shared: Path, mode: str) -> None:
    case = Case(shared / "golden", "sed_model_e2e")
    classes = case.facts["kwargs"]["train_classes"]
    model = whole_model(case, classes, finetune="full" if mode == "full" else "none")
    if mode == "fast_infer":
        object.__setattr__(model.decoder.config, "train", "heads")
        model.decoder.requires_grad_(False)
        model.decoder.heads[:-1].requires_grad_(True)
    model.set_vocabulary(classes, features_TPD=case["mid.text_features_train"])
    model.loss = BinaryCrossEntropy()
    model.train()
    labels = case["in.train.sem_seg"]
    sums = model(case["in.train.image"].to(torch.uint8), labels)
    losses = sums.detach()
    expected = [case.tensors.get(f"loss.{mode}.loss_sem_seg_{i}") for i in range(4)]
    found = losses / (labels.numel() * len(classes))
    order = [0, 1, 2, 3] if mode == "full" else [3, 1, 2]  # without the main loss the last auxiliary one comes first
    assert len(found) == len(order)
    for loss, index in zip(found, order, strict=True):
        assert float(loss) == pytest.approx(float(expected[index]), abs=1e-5)
    model.loss.mean(sums, model.loss.counts(labels, len(classes))).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    listed = {
        name.removeprefix(f"grad.{mode}."): each for name, each in case.tensors.items() if f"grad.{mode}." in name
    }
    assert listed
    for name, expected_gradient in listed.items():
        own = our_name(f"sem_seg_head.predictor.{name}")
        tiny = ".attention.attention.q" in name or ".attention.attention.k" in name
        assert relative(gradients[own], expected_gradient) < (TINY_GRADIENT if tiny else GRADIENT), name


def test_trained_parameters_are_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_model_e2e")
    official = case.facts["extra"]["trainable_parameters"]
    modes = {"full": "full", "conv": "conv", "mlp": "mlp", "full_res5": "res5", "attention": "none"}
    for theirs, ours in modes.items():
        if theirs not in official:
            continue
        model = whole_model(case, ["a"], finetune=ours)
        expected = {our_name(name) for name in official[theirs]}
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
        assert trained == expected, theirs


def test_every_step_equals_the_official_trace(shared: Path) -> None:
    case = Case(shared / "golden", "sed_trace")
    model = whole_model(case, case.facts["test_classes"])
    model.set_vocabulary(model.classes, features_TPD=case["text.features_test"])
    image = case["in.image"][None].to(torch.uint8)
    squashed = F.interpolate(model.normalise(image), (96, 96), mode="bilinear", align_corners=False)
    assert relative(squashed, case["pre.normalised_resized"]) < FORWARD
    size = (case["pool1.out.prob"].shape[1], case["pool1.out.prob"].shape[2])
    for pool in (2, 1):
        object.__setattr__(model.decoder.config, "eval_pool", pool)
        with torch.no_grad(), record(model, "decoder.*", "encoder.*") as seen:
            said = model.predict(image)
        for key, tap, flat in (
            ("conv1", "embedded", True),
            *((f"decoder{i + 1}.attention", f"layers.{i}.class_maps", False) for i in range(3)),
            *((f"decoder{i + 1}.cnext", f"layers.{i}.spatial_maps", True) for i in range(3)),
            *((f"decoder{i + 1}.out", f"layers.{i}.maps", True) for i in range(3)),
            *((f"head{i}", f"layers.{i}.masks", True) for i in range(3)),
            ("head", "masks", True),
        ):
            official = case.tensors.get(f"pool{pool}.agg.{key}")
            if official is None:
                continue
            found = seen[f"decoder.{tap}"]
            found = found.flatten(0, 1) if flat else found.transpose(1, 2)
            found = found if found.dim() == official.dim() else found[:, None]
            assert relative(found, official) < FORWARD, f"pool {pool} {key}"
        if pool == 2:
            for level, block in enumerate(("0.blocks.0", "1.blocks.0", "2.blocks.1", "3.blocks.0")):
                official = case[f"pool2.clip.stages.{block}"]
                assert relative(seen[f"encoder.layers.{level}.maps"], official) < FORWARD
            assert relative(seen["encoder.dense"], case["clip.dense"]) < FORWARD
            assert relative(seen["decoder.cost"].transpose(1, 2), case["agg.cost_volume"]) < FORWARD
        probabilities = model.probabilities(said, size)[0]
        assert relative(probabilities, case[f"pool{pool}.out.prob"]) < FORWARD
        assert torch.equal(probabilities.argmax(0), case[f"pool{pool}.out.argmax"].long())


def test_early_rejection_equals_the_official_trace(shared: Path) -> None:
    case = Case(shared / "golden", "sed_trace")
    model = whole_model(case, case.facts["test_classes"])
    model.set_vocabulary(model.classes, features_TPD=case["text.features_test"])
    object.__setattr__(model.decoder.config, "eval_pool", 1)
    image = case["in.image"][None].to(torch.uint8)
    for k, facts in case.facts["early_rejection"].items():
        model.decoder.topk = int(k.removeprefix("top"))
        with torch.no_grad(), record(model, "decoder.layers.*.kept") as kept:
            said = model.predict(torch.cat([image, image.flip(3)]))
        for stage, expected in enumerate(facts["kept_global_indices_per_stage"]):
            assert kept[f"decoder.layers.{stage}.kept"][0].nonzero()[:, 0].tolist() == expected
        assert relative(said.masks_BKhw.sigmoid()[:1], case[f"er.{k}.prob_lowres"]) < FORWARD
        probabilities = model.probabilities(said, tuple(case[f"er.{k}.prob"].shape[1:]))[0]
        assert relative(probabilities, case[f"er.{k}.prob"]) < FORWARD
        assert torch.equal(probabilities.argmax(0), case[f"er.{k}.argmax"].long())


def test_tensors_of_real_models_are_the_official_ones(shared: Path) -> None:
    configs = json.loads((shared / "golden" / "segvit_sed" / "real_configs.json").read_text(encoding="utf-8"))
    counts = {
        "clip_convnext_base_w_320": (179_385_345, 1_376_396),
        "clip_convnext_large_d_320": (351_772_609, 1_473_164),
    }
    assert configs
    for name, (of_clip, of_decoder) in counts.items():
        with torch.device("meta"):
            model = build(CLIPConfig(name=name), SEDConfig(), 171)
        assert sum(each.numel() for each in model.encoder.parameters()) == of_clip
        assert sum(each.numel() for each in model.decoder.parameters()) == of_decoder


@pytest.mark.parametrize(
    ("name", "of_encoder", "gflops"),  # by number of names and pooling, published in whole GFLOPs
    [
        (
            "clip_convnext_base_w_320",
            361.7,
            {(20, 2): 69, (150, 2): 503, (459, 2): 1535, (847, 2): 2832, (150, 1): 577},
        ),
        ("clip_convnext_large_d_320", 811.9, {(150, 2): 506, (847, 2): 2843, (150, 1): 579}),
    ],
)
def test_costs_are_those_of_the_official_modules(
    name: str, of_encoder: float, gflops: dict[tuple[int, int], int]
) -> None:
    with torch.device("meta"):
        model = build(CLIPConfig(name=name), SEDConfig(), 2).eval()
    assert isinstance(model, OpenSegmentor)
    for (names, pool), expected in gflops.items():
        object.__setattr__(model.decoder.config, "eval_pool", pool)
        features = torch.empty(names, 80, model.encoder.embed, device="meta")
        model.set_vocabulary([f"name {index}" for index in range(names)], features_TPD=features)
        costs = count(model, 768)
        assert costs["decoder"].gflops == pytest.approx(expected, abs=max(0.5, 0.005 * expected))
        assert costs["encoder"].gflops == pytest.approx(of_encoder, rel=0.005)


def test_decoders_of_names_are_known_without_torch() -> None:
    assert sorted(OPEN_VOCABULARY) == sorted(name for name, each in DECODERS.items() if each.open_vocabulary)


# -------------------------------------------------------------------------------------------------------- our own


@pytest.mark.parametrize("attention", ["linear", "full"])
@pytest.mark.parametrize("pool", [1, 2])
def test_chunks_equal_the_plain_formulas(attention: str, pool: int) -> None:
    decoder, maps = small(attention=attention, eval_pool=pool, text_guidance=pool == 2)
    expected = decoder.predict(maps).masks_BKhw
    with torch.no_grad():
        for decoder.chunk in (None, 1, 3):
            assert relative(decoder(maps), expected) < FORWARD


def test_swin_blocks_in_place_of_convnext() -> None:
    """Windows of any map they fit, in chunks too; a map no larger than a window is one, whatever its name says."""
    decoder, maps = small(spatial="swin", window=3)
    maps = [each[..., : each.shape[-2]] for each in maps]  # 3, 6, 12 and 24 places a side
    expected = decoder.predict(maps).masks_BKhw
    with torch.no_grad():
        for decoder.chunk in (None, 2):
            assert relative(decoder(maps), expected) < FORWARD
    torch.manual_seed(0)
    blocks, x_nChw = sed.SwinBlocks(8, 2, 4).eval(), torch.randn(2, 8, 4, 8)
    one = sed.SwinBlocks(8, 2, 99).eval()
    one.load_state_dict(blocks.state_dict())
    assert torch.equal(one(x_nChw), blocks(x_nChw))  # both have two windows of 4, and no shift
    with pytest.raises(ModelError, match=r"A map of 4 x 6 places has no whole windows of 4"):
        blocks(x_nChw[..., :6])
    with pytest.raises(ConfigError, match=r"decoder\.spatial='?resnet'? is impossible: choose convnext or swin"):
        SEDConfig(spatial="resnet")


def test_early_rejection_of_a_batch_is_that_of_its_images() -> None:
    decoder, maps = small(num_classes=30)
    decoder.topk = 1
    with torch.no_grad(), record(decoder, "layers.*.kept") as kept:
        both = decoder(maps)
        together = {name: each.clone() for name, each in kept.items()}
        for image in range(2):
            alone = decoder([each[image : image + 1] for each in maps])
            assert torch.equal(alone.isinf(), both[image : image + 1].isinf())
            assert relative(alone.sigmoid(), both[image : image + 1].sigmoid()) < FORWARD
            for name, each in kept.items():
                assert torch.equal(each[0], together[name][image])
    first = together["layers.0.kept"]
    assert 0 < first.sum() < first.numel() and not torch.equal(first[0], first[1])
    assert torch.equal(both.isinf().all((2, 3)), ~together["layers.2.kept"])


def test_export_with_a_free_batch() -> None:
    """torch.export and ONNX give what the decoder gives, also for a batch they were not made with."""
    with torch.no_grad():
        check_export(OfScales(*small()), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0, 3.0]))


def test_early_rejection_is_not_exported() -> None:
    decoder, maps = small()
    decoder.topk = 1
    with torch.no_grad(), pytest.raises(ModelError, match="set topk=None to export SED"):
        torch.export.export(OfScales(decoder, maps), (torch.ones(2),), strict=False)


def test_taps_hear_the_same_in_chunks() -> None:
    """What is there as a whole where classes are visited in parts: of one image."""
    decoder, maps = small()
    one = [each[:1] for each in maps]
    with record(decoder, "*") as expected:
        decoder.predict(one)
    with torch.no_grad(), record(decoder, "cost", "embedded", "layers.*.masks") as heard:
        assert relative(decoder(one), expected["masks"]) < FORWARD
    assert list(heard) == ["cost", "embedded", *(f"layers.{index}.masks" for index in range(3))]
    for name, each in heard.items():
        assert relative(each, expected[name]) < FORWARD, name


def test_taps_hear_the_masks_of_early_rejection() -> None:
    """Before the first layer those of all classes; from there on what is rejected is -inf, in each image of a batch."""
    decoder, maps = small(num_classes=30)
    with torch.no_grad(), record(decoder, "layers.*.masks", "masks") as heard:
        decoder.plain(maps[-2::-1], maps[-1], decoder.text_TPD)
        whole = dict(heard)
        decoder.topk = 1
        with record(decoder, "layers.*.kept") as kept:
            said = decoder(maps)
    assert relative(heard["layers.0.masks"], whole["layers.0.masks"]) < FORWARD
    for index, name in enumerate(("layers.1.masks", "layers.2.masks", "masks")):
        assert torch.equal(heard[name].isfinite().all((2, 3)), kept[f"layers.{index}.kept"])
    assert torch.equal(heard["masks"], said)
    with torch.no_grad():
        with record(decoder, "cost"), pytest.raises(ModelError, match="of one image: show one at a time"):
            decoder(maps)
        changed = replace(decoder, {"layers.1.class_maps": torch.zeros_like})
        with changed, pytest.raises(ModelError, match="within a layer cannot be changed: set topk=None"):
            decoder(maps)
        with replace(decoder, {"cost": lambda cost: 0 * cost}):
            assert decoder([each[:1] for each in maps]).shape == (1, *said.shape[1:])


def test_keeping_every_class_is_no_rejection() -> None:
    decoder, maps = small()
    with torch.no_grad():
        whole = decoder(maps)
        decoder.topk = 99
        assert relative(decoder(maps), whole) < FORWARD


def test_the_image_is_learnt_through_the_cost_alone() -> None:
    decoder, maps = small()
    decoder.train()
    maps = [each.requires_grad_() for each in maps]
    said = decoder.predict(maps)
    said.masks_BKhw.sum().backward(retain_graph=True)
    assert [each.grad is None for each in maps] == [True, True, True, False]
    decoder.zero_grad()
    sum(each.masks_BKhw.sum() for each in said.earlier).backward()
    assert {
        name.split(".")[0] for name, each in decoder.named_parameters() if each.grad is not None and each.grad.any()
    } == {"heads"}


def test_binary_cross_entropy_equals_the_formula() -> None:
    torch.manual_seed(0)
    masks = torch.randn(2, 5, 6, 7, requires_grad=True)
    labels = torch.randint(0, 5, (2, 23, 30))
    labels[:, :5] = 255
    loss = BinaryCrossEntropy()
    for patch, size in ((0, (23, 30)), (4, (24, 28))):
        cut = labels[..., :28] if patch else labels
        whole = F.interpolate(masks, size, mode="bilinear")[..., :23, :]
        one_hot = F.one_hot(cut.clamp(max=5), 6)[..., :5].permute(0, 3, 1, 2).float()
        one_hot = one_hot * (cut != 255)[:, None]
        expected = F.binary_cross_entropy_with_logits(whole, one_hot)
        prediction = sed.Prediction(masks)
        found = loss.mean(loss(prediction, cut, patch), loss.counts(cut, 5))
        assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
        (own,) = torch.autograd.grad(found, masks)
        (theirs,) = torch.autograd.grad(expected, masks)
        assert relative(own, theirs) < 1e-5
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        loss(sed.Prediction(masks), torch.full((2, 24, 28), 7), 4)


def test_an_image_keeps_its_own_size_where_asked() -> None:
    encoder = CLIPConfig(name="clip_convnext_tiny", squash=False, words=["cat", "dog", "sky"], templates="plain")
    model = build(encoder, SEDConfig(hidden=32, widths=[32, 16, 16], guidance=[8, 8, 4], kernels=[3, 3, 3]), 2)
    assert isinstance(model, OpenSegmentor)
    model.set_vocabulary(["cat", "dog"], features_TPD=F.normalize(torch.randn(2, 4, 64), dim=-1))
    model.eval()
    images = torch.randint(0, 256, (1, 3, 40, 70), dtype=torch.uint8)
    with torch.no_grad():
        said = model.predict(images)
        assert said.masks_BKhw.shape == (1, 2, 24, 40)  # of 48 x 80 px, half a place each
        assert model(images).shape == (1, 2, 40, 70)
        padded = F.pad(images, (0, 10, 0, 8))
        assert padded.shape[-2:] == (48, 80)
    model.loss = BinaryCrossEntropy()
    assert model.mask_stride == 2
    assert model(images, torch.zeros(1, 40, 70, dtype=torch.long)).shape == (4,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [8, 16, 16]}, "decoder.widths"),
        ({"guidance": [128, 16, 8]}, "decoder.guidance"),
        ({"heads": 3}, "decoder.heads"),
        ({"kernels": [9, 9]}, "decoder.kernels"),
        ({"kernels": [9, 8, 9]}, "odd"),
        ({"attention": "none"}, "linear or full"),
        ({"train": "nothing"}, "all or heads"),
        ({"pool": 0}, "decoder.pool"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SEDConfig(**changes)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ModelError, match="needs an encoder with a text tower"):
        build(EncoderConfig(width=24, depth=1, heads=2, image_size=32), SEDConfig(), 3)
    with pytest.raises(ModelError, match="must be a multiple of 32"):
        CLIPEncoder(CLIPConfig(image_size=100, text_layers=1, depths=[1, 1, 1, 1], vocabulary=9))
    decoder, maps = small()
    decoder.text_TPD = None
    with pytest.raises(ModelError, match="has no names yet"):
        decoder(maps)
    decoder, maps = small(pool=4)
    decoder.train()
    with pytest.raises(ModelError, match="cannot be pooled 4 x 4"):
        decoder(maps)
