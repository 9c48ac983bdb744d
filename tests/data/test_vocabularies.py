import hashlib

import pytest

from whitebox.data.readers import class_list
from whitebox.data.vocabularies import VOCABULARIES, vocabulary
from whitebox.errors import ConfigError

LISTS = {  # names, and sha256 of them a line each: those of xb534/SED db20d93, "bed " without its space
    "coco": (171, "8ea44449837dceb3"),
    "ade150": (150, "f9dbd8a75a0722c9"),
    "ade847": (847, "ee311c5f3b780a16"),
    "pc59": (59, "1c0546d54360b603"),
    "pc459": (459, "f22a02ac1b8419bc"),
    "voc20": (20, "7d877f185c807bc5"),
    "voc20b": (59, "245feb60aa05bd70"),
}


@pytest.mark.parametrize("name", LISTS)
def test_names_are_those_of_sed(name: str) -> None:
    names = vocabulary(name)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert (len(names), digest[:16]) == LISTS[name]
    assert len(set(names)) == len(names)


def test_every_vocabulary_is_held_to_its_list() -> None:
    assert set(LISTS) == set(VOCABULARIES)


def test_names_beyond_the_classes_of_voc_are_background() -> None:
    classes, colours = class_list("voc20b_names")
    assert classes[:20] == vocabulary("voc20")
    assert set(colours[20:]) == {class_list("voc20b")[1][-1]}
    assert not set(colours[:20]) & set(colours[20:])


def test_an_unknown_one_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Unknown vocabulary 'ade846'; did you mean 'ade847'"):
        vocabulary("ade846")
