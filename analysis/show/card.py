"""The page of a run on the Hub: its README.md, from the header of its weights and the records of what it was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from analysis.measurement import KINDS
from analysis.record import Record, notes
from analysis.show.render import groups
from analysis.show.spread import interval_words
from whitebox.text import markdown

# What a reader of the page wants to know, in this order; what else was measured is counted.
SHOWN = {
    "eval": "Accuracy",
    "boundary": "Outlines",
    "calibration": "Calibration",
    "parameter-noise": "Robustness to noise on the parameters",
    "input-noise": "Robustness to noise on the photos",
    "corruptions": "Robustness to corruptions",
    "ood": "Classes it does not know",
    "profile": "Cost",
}


@dataclass(frozen=True)
class Pushed:
    """A run on its way to the Hub.

    Attributes:
        repository: ``ORG/NAME``.
        header: of its weights file, see `whitebox.engine.header`.
        sha256, bytes: of the file that is pushed.
        measured: sha256 of the weights that records are about; another than ``sha256`` where the encoder was added.
        encoder: about its weights: licence, and the repository they came from; empty: trained from scratch.
        data_licence: of the dataset's owners; empty: not known here.
        licence: that the user gives the weights, an identifier of the Hub; None: none is stated.
        pictures: names of files of the repository, with what they show.
    """

    repository: str
    header: Mapping[str, Any]
    sha256: str
    bytes: int
    measured: str
    encoder: Mapping[str, str]
    data_licence: str
    licence: str | None
    pictures: Mapping[str, str]


def card(pushed: Pushed, records: Sequence[Record]) -> str:
    """Markdown with its metadata in front.

    Args:
        records: of these weights; kinds that the page does not show are counted.
    """
    shown = [record for record in records if record.kind in SHOWN]
    parts = [_metadata(pushed, shown), _what(pushed), _use(pushed), *_scores(shown), _others(records)]
    parts += [_trained(pushed), _provenance(pushed, shown), _limits(pushed, shown), _licences(pushed)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def single_evaluation(records: Sequence[Record]) -> Record | None:
    """The last evaluation of these weights as they are: one training, at one scale where there is such."""
    found = [record for record in records if record.kind == "eval"]
    plain = [record for record in found if not record.variant]
    return next(reversed(plain or found), None)


def _metadata(pushed: Pushed, records: Sequence[Record]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data, config = pushed.header["config"]["data"], pushed.header["config"]
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=record.data.name,
            dataset_name=record.data.name,
            dataset_split=record.data.split,
            metric_type="mean_iou",
            metric_name=f"mIoU{f' ({record.variant})' if record.variant else ''}",
            metric_value=round(record.measured["miou"]["value"], 4),
            metric_config=f"n = {record.n} images; {interval_words(record)}: {_ends(record.measured['miou'])}",
        )
        for record in records
        if record.kind == "eval" and record.measured["miou"]["value"] is not None
    ]
    said = ModelCardData(
        library_name="whitebox",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "white-box", config["decoder"]["name"]],
        datasets=[data.get("name", "")],
        license=pushed.licence,
        base_model=pushed.encoder.get("repository") or None,
        model_name=pushed.repository.split("/")[1] if results else None,
        eval_results=results or None,
    )
    return f"---\n{said.to_yaml()}\n---\n"


def _ends(stored: Mapping[str, Any]) -> str:
    low, high = stored.get("low"), stored.get("high")
    return "none" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _what(pushed: Pushed) -> str:
    config, classes = pushed.header["config"], pushed.header["classes"]
    name, data = pushed.repository.split("/")[1], config["data"].get("name", "its data")
    pictures = "".join(f"\n![{markdown(what)}]({file})\n" for file, what in pushed.pictures.items())
    shown = ", ".join(markdown(each) for each in classes[:30])
    return (
        f"# {markdown(name)}\n\n"
        f"`{config.get('model', 'a model')}`: the decoder `{config['decoder']['name']}` on the encoder "
        f"`{config['encoder'].get('name')}`, which gives each pixel of a photo one of the {len(classes)} classes of "
        f"{markdown(str(data))}. Made and measured with whitebox (`pip install whitebox-seg`).\n{pictures}\n"
        f"Classes: {shown}{', ...' if len(classes) > 30 else ''}.\n"
    )


def _use(pushed: Pushed) -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "import whitebox\n\n"
        f'model = whitebox.load_model("hf-hub:{pushed.repository}")\n'
        "logits = model(images)  # RGB (B, 3, H, W), uint8 or float in [0, 1], of any size -> (B, K, H, W)\n"
        "```\n\n"
        "```bash\n"
        f"whitebox predict hf-hub:{pushed.repository} photos/ -o out/\n"
        f"whitebox eval hf-hub:{pushed.repository} --data-root DIR\n"
        "```\n"
    )


def _scores(records: Sequence[Record]) -> list[str]:
    parts, order = [], list(SHOWN)
    if not any(record.kind == "eval" for record in records):
        parts.append("## Accuracy\n\nNo evaluation of these weights is recorded.\n")
    for group in sorted(groups(records) if records else [], key=lambda group: order.index(group[0].kind)):
        first = group[0]
        variant = f", {first.variant}" if first.variant else ""
        heading = f"## {SHOWN[first.kind]} ({first.data.name} {first.data.split}{variant})".replace(" )", ")")
        tables = import_module(KINDS[first.kind].shown).tables(group)
        parts.append("\n".join([f"{heading}\n", *(table.to_markdown() for table in tables.values())]))
    return parts


def _others(records: Sequence[Record]) -> str:
    others = sorted({record.kind for record in records} - SHOWN.keys())
    return f"Measured, and not shown here: {', '.join(others)}." if others else ""


def _trained(pushed: Pushed) -> str:
    config = pushed.header["config"]
    encoder, data, optim, train = (config.get(key, {}) for key in ("encoder", "data", "optim", "train"))
    start = "random weights"
    if encoder.get("pretrained") or encoder.get("weights"):
        about = pushed.encoder.get("about")
        start = f"pretrained weights ({about})" if about else "pretrained weights"
    length = f"{train.get('epochs')} epochs" if train.get("steps") is None else f"{train.get('steps')} steps"
    rows = {
        "Encoder": f"{encoder.get('name')}, {start}{', frozen' if encoder.get('frozen') else ''}",
        "Data": f"{data.get('name')} {data.get('train_split', '')}, crop {data.get('crop')} px",
        "Length": f"{length}, batch {train.get('batch_size')}, seed {train.get('seed')}",
        "Optimiser": f"{optim.get('name')}, rate {optim.get('lr')}, weight decay {optim.get('weight_decay')}, "
        f"{optim.get('schedule')}",
        "Loss": str(config.get("loss", {}).get("name")),
        "Precision": str(train.get("precision")),
    }
    lines = [f"| {name} | {markdown(text)} |" for name, text in rows.items()]
    return "\n".join(["## Training\n", "| | |", "| --- | --- |", *lines, "", "All of it is in `config.json`."]) + "\n"


def _provenance(pushed: Pushed, records: Sequence[Record]) -> str:
    versions = pushed.header.get("versions") or {}
    told = ", ".join(f"{name} {versions[name]}" for name in ("whitebox", "torch", "timm") if versions.get(name))
    lines = [f"- Weights: `model.safetensors`, {pushed.bytes / 1e6:.1f} MB, sha256 `{pushed.sha256}`."]
    if pushed.measured != pushed.sha256:
        lines.append(f"- Measured on the decoder alone, with the same encoder: sha256 `{pushed.measured}`.")
    apart = pushed.header.get("encoder")
    if apart and pushed.measured == pushed.sha256:
        lines.append(
            f"- They are those of the decoder; the frozen encoder `{apart.get('name')}` is fetched, and must have "
            f"sha256 `{apart.get('sha256')}`."
        )
    lines.append(f"- Trained by {told or 'a version that is not known'}, commit `{versions.get('git_commit')}`.")
    data = {(record.data.name, record.data.split, record.data.images, record.data.fingerprint) for record in records}
    lines += [
        f"- Data: {name} {split}, {count} images, fingerprint `{digest}`."
        for name, split, count, digest in sorted(data)
    ]
    commands = dict.fromkeys(
        record.command.replace("`", "").replace("__main__.py", "whitebox", 1) for record in records if record.command
    )
    lines += [f"- Measured by `{command}`." for command in commands]
    return "## Provenance\n\n" + "\n".join(lines) + "\n"


def _limits(pushed: Pushed, records: Sequence[Record]) -> str:
    data = markdown(str(pushed.header["config"]["data"].get("name", "its data")))
    lines = [
        f"- Trained on {data} alone: photos of another kind, and what is of none of its classes, get one of these all "
        "the same.",
    ]
    if (found := single_evaluation(records)) is not None:
        lines.append(f"- Intervals above: {markdown(interval_words(found))}.")
    if pushed.header.get("altered"):
        lines.append(f"- Changed after its training: {markdown(str(pushed.header['altered'].get('operation')))}.")
    lines += [f"- {markdown(note)}" for note in dict.fromkeys(notes(records))]
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _licences(pushed: Pushed) -> str:
    data = markdown(str(pushed.header["config"]["data"].get("name", "")))
    lines = [f"- Weights: {pushed.licence or 'none is stated here; they follow from what is below'}."]
    if pushed.encoder.get("licence"):
        lines.append(f"- Pretrained encoder: {markdown(pushed.encoder['licence'])}.")
    lines.append(f"- Data ({data}): {markdown(pushed.data_licence) if pushed.data_licence else 'as its owners say'}.")
    return "## Licences\n\n" + "\n".join(lines) + "\n"
