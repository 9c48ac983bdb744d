"""Weights of the Hub: cached, downloaded, or one line, and never a minute of waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from whitebox.errors import ModelError
from whitebox.models import hub


class Session:
    """A client that was asked for something."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, []  # type: ignore[var-annotated]

    def head(self, url: str, timeout: float) -> None:
        self.asked.append((url, timeout))
        if self.error is not None:
            raise self.error


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session()
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: made)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return made


def fetched(cached: str | None, monkeypatch: pytest.MonkeyPatch, fetch: Any = lambda: constants.HF_HUB_OFFLINE) -> Any:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: cached)
    return hub.from_hub("vit", "org/vit", ["model.safetensors"], fetch)


def test_from_the_cache_without_asking(session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fetched(str(tmp_path), monkeypatch) is True
    assert session.asked == []
    assert constants.HF_HUB_OFFLINE is False


def test_the_hub_is_asked_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(None, monkeypatch) is False
    assert session.asked == [(constants.ENDPOINT, hub.SECONDS)]


def test_no_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.error = OSError("Name or service\nnot known")
    with pytest.raises(ModelError, match=r"of vit could not be downloaded \(OSError: Name or service not known\)"):
        fetched(None, monkeypatch, lambda: pytest.fail("it was tried all the same"))


def test_gated(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class GatedRepoError(Exception):
        pass

    def refuse() -> None:
        raise GatedRepoError("403")

    with pytest.raises(ModelError, match=r"accepted their licence: do so at https://huggingface.co/org/vit, then `hf"):
        fetched(None, monkeypatch, refuse)
