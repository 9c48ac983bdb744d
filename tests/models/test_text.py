"""Names become prompts, tokens and embeddings, as CLIP and SED have them."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sed_vectors import Case, clip_name, relative, whole_model

from whitebox.data.vocabularies import vocabulary
from whitebox.errors import ConfigError
from whitebox.models import text
from whitebox.models.text import TextTower, VocabularyError, Words, make_tokenizer, text_features

WORDS = ["a", "photo", "of", "the", "in", "scene", "red", "blue", "star", "ring", "ground"]
FORWARD = 2e-5


def tower(embed: int = 12, tokenizer: text.Tokenizer | None = None) -> TextTower:
    torch.manual_seed(0)
    size = tokenizer.size if tokenizer else len(WORDS) + 3
    return TextTower(size, 12, 16, 2, 2, embed).eval()


def test_prompts_are_in_the_official_order() -> None:
    assert text.prompts("bed ", ("a {}.", "the {}")) == ["a bed .", "the bed "]
    assert text.prompts("door, gate", ("a {}", "b {}")) == ["a door", "a gate", "b door", "b gate"]


def test_templates_are_the_official_ones(shared: Path) -> None:
    facts = json.loads((shared / "golden" / "sed_steps" / "sed_eval_data.json").read_text(encoding="utf-8"))
    found = hashlib.sha256("\n".join(text.templates("imagenet")).encode()).hexdigest()
    assert found in json.dumps(facts)
    selected = Case(shared / "golden", "sed_class_embeddings").facts["extra"]["select8"]["templates"]
    assert list(text.templates("imagenet-select")) == selected
    assert text.templates("single") == ("A photo of a {} in the scene",)
    for name, count in text.TEMPLATE_COUNTS.items():
        assert len(text.templates(name)) == count


def test_tokens_are_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_clip_tokens")
    tokenizer = make_tokenizer((), 77)
    for string, ids in zip(case.facts["kwargs"]["strings"], case["out.ids"], strict=True):
        if len(tokenizer.tokens(string)) <= 77:
            assert torch.equal(tokenizer([string])[0], ids)
        else:  # cut off by the official tokenizer, refused here
            assert tokenizer.tokens(string)[:76] == ids[:76].tolist()
            with pytest.raises(VocabularyError, match="at most 77"):
                tokenizer([string])


def test_token_ids_of_a_whole_class_list_are_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_trace")
    tokenizer = make_tokenizer((), 77)
    assert torch.equal(tokenizer(case.facts["text_prompts"]), case["text.ids"].long())


@pytest.mark.parametrize("name", ["coco", "ade150", "ade847", "pc59", "pc459", "voc20", "voc20b"])
def test_token_ids_of_every_prompt_of_a_list_are_the_official_ones(shared: Path, name: str) -> None:
    facts = json.loads((shared / "golden" / "sed_steps" / "sed_eval_data.json").read_text(encoding="utf-8"))
    tokenizer, of = make_tokenizer((), 77), text.templates("imagenet")
    digest, longest, count = hashlib.sha256(), 0, 0
    for class_name in vocabulary(name):
        ids = tokenizer(text.prompts(class_name, of))
        digest.update(ids.to(torch.int32).numpy().astype("<i4").tobytes())
        longest, count = max(longest, int(ids.argmax(1).max()) + 1), count + len(ids)
    assert {"prompts": count, "sha256_int32_le": digest.hexdigest(), "longest": longest} == facts["tokens"][name]


def test_class_embeddings_equal_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_class_embeddings")
    official = case.facts["kwargs"]
    sizes = official["clip"]["text_cfg"]
    model = TextTower(
        sizes["vocab_size"],
        sizes["context_length"],
        sizes["width"],
        sizes["heads"],
        sizes["layers"],
        official["clip"]["embed_dim"],
    ).eval()
    tensors = {clip_name(name): each for name, each in case.weights.items() if name != "logit_scale"}
    model.load_state_dict({name.removeprefix("text."): each for name, each in tensors.items()})
    for kind in ("select8", "single"):
        facts, ids = case.facts["extra"][kind], case[f"in.{kind}.tokens"]
        assert relative(model(ids), case[f"mid.{kind}.raw_text_features"]) < FORWARD
        rows = dict(zip(facts["prompts_in_order"], ids, strict=True))

        class Listed(text.Tokenizer):
            def tokens(self, prompt: str, rows: dict[str, torch.Tensor] = rows) -> list[int]:
                row = rows[prompt]
                return row[: int(row.argmax()) + 1].tolist()

        tokenizer = Listed(sizes["context_length"], sizes["vocab_size"], "listed")
        found = text_features(model, tokenizer, official["class_names"], facts["templates"])
        assert relative(found, case[f"out.{kind}.text_features"]) < FORWARD


def test_every_layer_of_the_text_tower_equals_the_official_trace(shared: Path) -> None:
    case = Case(shared / "golden", "sed_trace")
    model = whole_model(case, ["a"])
    ids = case["text.ids"].long()
    assert relative(model.encoder.text(ids), case["text.encoded"]) < FORWARD


def test_class_features_of_the_whole_model_equal_the_official_ones(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    case = Case(shared / "golden", "sed_trace")
    model = whole_model(case, case.facts["test_classes"])
    assert relative(model.prepare(), case["text.features_test"]) < FORWARD
    model.set_vocabulary(case.facts["train_classes"])
    assert relative(model.prepare(), case["text.features_train"]) < FORWARD


def test_what_stands_behind_the_end_does_not_matter() -> None:
    model, tokenizer = tower(), Words(WORDS, 12)
    short, long = "red star", "a photo of the blue ring"
    together = model(tokenizer([short, long]))
    assert relative(model(tokenizer([short])), together[:1]) < FORWARD


def test_synonyms_are_averaged_after_normalising() -> None:
    model, tokenizer = tower(), Words(WORDS, 12)
    found = text_features(model, tokenizer, ["red, blue", "star"], ("a {}", "{}"))
    assert found.shape == (2, 2, 12)
    assert torch.allclose(found.norm(dim=-1), torch.ones(2, 2))
    alone = text_features(model, tokenizer, ["red", "blue"], ("a {}", "{}"))
    assert relative(found[0], torch.nn.functional.normalize(alone.mean(0), dim=-1)) < FORWARD


def test_progress_counts_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_AT_ONCE", 3)
    seen: list[tuple[int, int]] = []
    text_features(tower(), Words(WORDS, 12), ["red", "blue, ring"], ("a {}", "{}"), lambda *done: seen.append(done))
    assert seen == [(3, 6), (6, 6)]


def test_features_are_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    model, tokenizer = tower(), Words(WORDS, 12)
    calls: list[int] = []

    def features(names: list[str], templates: str = "plain") -> torch.Tensor:
        calls.clear()
        return text.cached_text_features(model, tokenizer, names, templates, lambda done, _: calls.append(done))

    first = features(["red", "blue"])
    assert calls
    assert torch.equal(features(["red", "blue"]), first) and not calls
    assert features(["blue", "red"]).shape == first.shape and calls  # other names
    features(["red", "blue"], "single")
    assert calls  # other templates
    with torch.no_grad():
        model.projection.mul_(-1)
    features(["red", "blue"])
    assert calls  # other weights
    for path in (tmp_path / "text").iterdir():
        save_file({"features": torch.zeros(1)}, path)
    with caplog.at_level(logging.WARNING):
        features(["red", "blue"])
    assert calls and "is damaged" in caplog.text
    (tmp_path / "file").touch()
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "file"))
    assert features(["red", "blue"]).shape == first.shape and calls
    assert "are not kept" in caplog.text


def test_a_long_vocabulary_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of some names each: what was encoded is not encoded again, and the features are those of one go."""
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "_AT_ONCE", 8)
    model, tokenizer = tower(), Words(WORDS, 12)
    names = ["red star", "blue, blue ring", "star", "ring", "ground"]  # 4, 8, 4, 4 and 4 prompts
    whole = text_features(model, tokenizer, names, text.PLAIN)
    monkeypatch.setattr(text, "_KEPT_AT_ONCE", 8)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 24
        if done > 12:
            raise Killed

    with pytest.raises(Killed):
        text.cached_text_features(model, tokenizer, names, "plain", kill)
    (kept,) = (tmp_path / "text").iterdir()
    seen: list[tuple[int, int]] = []
    found = text.cached_text_features(model, tokenizer, names, "plain", lambda *done: seen.append(done))
    assert seen == [(20, 24), (24, 24)]  # two names with 12 prompts were there; then two, then one
    assert relative(found, whole) < FORWARD
    files = sorted((tmp_path / "text").iterdir())
    assert len(files) == 3 and kept in files
    seen.clear()
    assert torch.equal(text.cached_text_features(model, tokenizer, names, "plain"), found) and not seen
    kept.write_bytes(b"")
    text.cached_text_features(model, tokenizer, names, "plain", lambda *done: seen.append(done))
    assert [done for done, _ in seen] == [20, 24] and "is damaged" in caplog.text
    kept.unlink()
    with pytest.raises(VocabularyError, match=r"'red red.* has 15 tokens in a prompt"):  # before anything is encoded
        text.cached_text_features(model, tokenizer, [*names, "red " * 9], "plain", lambda *done: seen.append(done))
    assert not kept.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "vocabulary is empty"),
        (["red", " "], "Class 2 of the vocabulary has no name"),
        (["red, "], "an empty synonym"),
        (["red", "blue", "Red "], "Class 3 of the vocabulary, 'Red ', is class 1 already"),
        (["red", "violet star"], "'violet'"),
        (["red star " * 9], "at most 12"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message) as refused:
        text_features(tower(), Words(WORDS, 12), names, ("{}",))
    assert "\n" not in str(refused.value)


def test_a_missing_open_clip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    text._byte_pairs.cache_clear()
    with pytest.raises(ConfigError, match=r"needs open_clip: pip install 'whitebox-seg\[sed\]'$"):
        make_tokenizer((), 77).tokens("cat")
    with pytest.raises(ConfigError, match="pip install"):
        text.templates("imagenet")


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_an_open_clip_that_cannot_be_imported_is_said(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_clip.py").write_text(f"raise {error}('operator torchvision::nms\\ndoes not exist')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(
        ConfigError, match=r"cannot be imported \(operator torchvision::nms does not exist\): pip"
    ) as said:
        text.templates("imagenet")
    assert "\n" not in str(said.value)
