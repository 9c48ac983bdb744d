"""Names as embeddings: prompt templates, token ids, and CLIP's text tower.

A name becomes one prompt a template, "a photo of a {}.". Synonyms, separated by ", ", become a prompt each; their
embeddings are averaged and brought back to length 1 (SED's rule). So a class is P unit vectors.

CLIP's byte pairs and the 80 templates of OpenAI come from open_clip (the extra ``sed``), which is imported where a name
is first turned into tokens; models are built and weights read without it.

Shapes: N prompts, L tokens, P templates, T classes, D width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from whitebox.errors import ConfigError, OutputError
from whitebox.extras import require_extra
from whitebox.files import cache_folder, write_atomically
from whitebox.names import SYNONYMS, VocabularyError, check_vocabulary, quoted

log = logging.getLogger("whitebox")

SELECT = (  # of OpenAI's templates for ImageNet, as SED's `imagenet_select`
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "A photo of a {} in the scene",
)
PLAIN = ("{}", "a {}", "a photo of a {}", "the {} in the scene")
TEMPLATE_COUNTS = {"imagenet": 80, "imagenet-select": len(SELECT), "single": 1, "plain": len(PLAIN)}
Progress = Callable[[int, int], None]  # prompts encoded, of how many

_AT_ONCE = 512  # prompts in one pass
_KEPT_AT_ONCE = 4096  # prompts of one file of the cache: what is encoded again after a kill


def templates(name: str) -> tuple[str, ...]:
    """Prompt templates with ``{}`` for the name, in the order the cost volume has them as channels.

    Raises:
        ConfigError: they come from open_clip, which is not installed.
    """
    if name == "imagenet":
        return tuple(each("{}") for each in _open_clip().OPENAI_IMAGENET_TEMPLATES)
    return {"imagenet-select": SELECT, "single": SELECT[-1:], "plain": PLAIN}[name]


def prompts(name: str, of: Sequence[str]) -> list[str]:
    """The prompts of one class: template by template, in each synonym by synonym."""
    return [template.replace("{}", synonym) for template in of for synonym in name.split(SYNONYMS)]


def _open_clip() -> Any:
    require_extra("sed", "Making tokens of names")
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision that was built for another torch
        said = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"open_clip is installed but cannot be imported ({said}): pip install --force-reinstall open_clip_torch "
            "torchvision, in versions for your torch."
        ) from error
    return open_clip


@lru_cache(maxsize=1)
def _byte_pairs() -> Any:
    return _open_clip().SimpleTokenizer()


class Tokenizer:
    """Texts -> token ids: a start, the text's own, and an end, which is the largest id of all.

    Attributes:
        context: tokens a prompt may have. size: number of different ids. identity: tells tokenizers apart.
    """

    def __init__(self, context: int, size: int, identity: str) -> None:
        self.context, self.size, self.identity = context, size, identity

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, with start and end, however many."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, context), filled up with 0.

        Raises:
            VocabularyError: a text has more tokens than the context.
        """
        found = [self.tokens(text) for text in texts]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > self.context:
                raise VocabularyError(f"{quoted(text)} has {len(ids)} tokens, but a prompt has at most {self.context}.")
        return self.filled(found)

    def filled(self, found: Sequence[Sequence[int]]) -> Tensor:
        """Ids of texts that fit the context, (N, context), filled up with 0."""
        ids_NL = torch.zeros(len(found), self.context, dtype=torch.long)
        for row, ids in enumerate(found):
            ids_NL[row, : len(ids)] = torch.tensor(ids)
        return ids_NL


class BytePairs(Tokenizer):
    """CLIP's own."""

    def __init__(self, context: int) -> None:
        super().__init__(context, 49408, "clip")

    def tokens(self, text: str) -> list[int]:
        byte_pairs = _byte_pairs()
        return [byte_pairs.sot_token_id, *byte_pairs.encode(text), byte_pairs.eot_token_id]


class Words(Tokenizer):
    """A vocabulary of whole words, for text towers that are trained here."""

    def __init__(self, words: Sequence[str], context: int) -> None:
        super().__init__(context, len(words) + 3, "words " + " ".join(words))
        self.ids = {word: index for index, word in enumerate(words, start=1)}

    def tokens(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        unknown = [word for word in words if word not in self.ids]
        if unknown:
            raise VocabularyError(
                f"{quoted(text)} has a word that this text tower never saw, {unknown[0]!r}; "
                f"it knows {len(self.ids)}: {', '.join(self.ids)}."
            )
        return [self.size - 2, *(self.ids[word] for word in words), self.size - 1]


def make_tokenizer(words: Sequence[str], context: int) -> Tokenizer:
    """CLIP's byte pairs, or whole words where there are any."""
    return Words(words, context) if words else BytePairs(context)


class TextTower(nn.Module):
    """Causal pre-norm Transformer over tokens; the embedding is the last token's, projected. Never trained by SED.

    Source: Radford et al. 2021, arXiv 2103.00020, section 2.4, with GELU, as open_clip has it.
    """

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int, embed: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, embed))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.projection, std=width**-0.5)

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Token ids -> embeddings (N, D), not normalised.

        What stands behind the end of a text cannot act on it, so it is cut off.
        """
        end_N = ids_NL.argmax(dim=1)
        length = int(end_N.max()) + 1
        z_NLD = self.token_embedding(ids_NL[:, :length]) + self.positional_embedding[:length]
        later_LL = torch.ones(length, length, dtype=torch.bool, device=ids_NL.device).triu(1)
        for layer in self.layers:
            z_NLD = layer(z_NLD, src_mask=later_LL)
        z_ND = self.norm(z_NLD[torch.arange(len(z_NLD), device=ids_NL.device), end_N])
        return cast(Tensor, z_ND @ self.projection)


def text_features(
    tower: TextTower,
    tokenizer: Tokenizer,
    names: Sequence[str],
    of: Sequence[str],
    progress: Progress | None = None,
) -> Tensor:
    """Unit vectors of each class under each template, (T, P, D) float32 on the tower's device, with their gradients.

    Args:
        names: classes, synonyms separated by ", ". of: templates.
        progress: called with the prompts encoded so far, and all of them.

    Raises:
        VocabularyError: no names, one twice, or one that is too long (which, and how long).
    """
    check_vocabulary(names)
    return _encoded(tower, tokenizer, _tokens(tokenizer, names, of), len(of), progress)


def _tokens(tokenizer: Tokenizer, names: Sequence[str], of: Sequence[str]) -> list[list[list[int]]]:
    """Token ids of the prompts of each class.

    Raises:
        VocabularyError: a name is too long.
    """
    found = [[tokenizer.tokens(text) for text in prompts(name, of)] for name in names]
    lengths = [max(map(len, of_class)) for of_class in found]
    if max(lengths) > tokenizer.context:
        raise VocabularyError(
            f"The class {quoted(names[lengths.index(max(lengths))])} has {max(lengths)} tokens in a prompt, but a "
            f"prompt has at most {tokenizer.context}: shorten it."
        )
    return found


def _encoded(
    tower: TextTower, tokenizer: Tokenizer, tokens: Sequence[list[list[int]]], P: int, progress: Progress | None
) -> Tensor:
    """Features (T, P, D) of classes given by the token ids of their prompts, see ``prompts``."""
    device = tower.projection.device
    flat = [ids for of_class in tokens for ids in of_class]
    encoded = torch.empty(len(flat), tower.projection.shape[1], device=device)
    order = sorted(range(len(flat)), key=lambda index: len(flat[index]))  # prompts of a length share a pass
    for start in range(0, len(flat), _AT_ONCE):
        part = order[start : start + _AT_ONCE]
        ids_NL = tokenizer.filled([flat[index] for index in part])
        encoded[torch.tensor(part, device=device)] = F.normalize(tower(ids_NL.to(device)).float(), dim=-1)
        if progress is not None:
            progress(start + len(part), len(flat))
    features, start = [], 0
    for of_class in tokens:
        vectors_PSD = encoded[start : start + len(of_class)].unflatten(0, (P, -1))
        start += len(of_class)
        features.append(vectors_PSD[:, 0] if vectors_PSD.shape[1] == 1 else F.normalize(vectors_PSD.mean(1), dim=-1))
    return torch.stack(features)


def random_features(names: Sequence[str], prompts: int, width: int) -> Tensor:
    """A unit vector for each name, the same under each template and whatever the other names are, (T, P, D)."""
    check_vocabulary(names)
    seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") for name in names]
    vectors_TD = torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return F.normalize(vectors_TD, dim=-1)[:, None].repeat(1, prompts, 1)


def cached_text_features(
    tower: TextTower,
    tokenizer: Tokenizer,
    names: Sequence[str],
    template_name: str,
    progress: Progress | None = None,
) -> Tensor:
    """As ``text_features``, read from the disk where the same tower has encoded the same names before.

    Files lie in ``$WHITEBOX_CACHE`` (else ``~/.cache/whitebox``) below ``text/``, of a long vocabulary one for some of
    its names, each written when these are encoded: after a kill it goes on there. One that cannot be read is made
    again, and where none can be written the features are computed each time.

    Raises:
        VocabularyError: see ``text_features``; before anything is encoded.
    """
    check_vocabulary(names)
    identity, P = _identity(tower), TEMPLATE_COUNTS[template_name]
    blocks = _blocks(names, P)
    paths = [_kept_at(identity, tokenizer, block, template_name) for block in blocks]
    found = [_read(path, (len(block), P, tower.projection.shape[1])) for path, block in zip(paths, blocks, strict=True)]
    if missing := [index for index, features in enumerate(found) if features is None]:
        of = templates(template_name)
        tokens = {index: _tokens(tokenizer, blocks[index], of) for index in missing}
        total = sum(len(prompts(name, of)) for name in names)
        done = total - sum(len(of_class) for block in tokens.values() for of_class in block)
        for index in missing:
            own = None if progress is None else partial(_further, progress, done, total)
            with torch.no_grad():
                found[index] = features = _encoded(tower, tokenizer, tokens[index], P, own).cpu()
            done += sum(map(len, tokens.pop(index)))
            _keep(paths[index], features)
    return torch.cat(cast("list[Tensor]", found)).to(tower.projection.device)


def _further(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Progress of one part, as that of the whole."""
    progress(before + done, total)


def _blocks(names: Sequence[str], P: int) -> list[list[str]]:
    """Names that share a file: in their order, about as many as have ``_KEPT_AT_ONCE`` prompts."""
    blocks: list[list[str]] = []
    room = 0
    for name in names:
        if room <= 0:
            blocks.append([])
            room = _KEPT_AT_ONCE
        blocks[-1].append(name)
        room -= P * len(name.split(SYNONYMS))
    return blocks


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Features of this shape; None: there is no such file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"]
        if tuple(features.shape) == shape:
            return features
    except (SafetensorError, OSError, ValueError, KeyError):
        pass
    log.warning("%s is damaged; its names are encoded again.", path)
    return None


def _keep(path: Path, features: Tensor) -> None:
    try:
        write_atomically(path, lambda target: save_file({"features": features.contiguous()}, target))
    except OutputError as error:
        log.warning("Text features are not kept: %s", error)


def _identity(tower: TextTower) -> hashlib._Hash:
    """A digest of the tower's weights, to be gone on with."""
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest


def _kept_at(identity: hashlib._Hash, tokenizer: Tokenizer, names: Sequence[str], template_name: str) -> Path:
    digest = identity.copy()
    digest.update(json.dumps([tokenizer.identity, tokenizer.context, list(names), template_name]).encode())
    return cache_folder() / "text" / f"{digest.hexdigest()[:32]}.safetensors"
