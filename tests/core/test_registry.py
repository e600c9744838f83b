import sys
import types

import pytest

from affectgpt.core.errors import ConfigError, did_you_mean
from affectgpt.core.registry import Registry, import_files
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, VISUAL_ENCODERS
from affectgpt.modeling.connectors.base import CONNECTORS, PREFUSIONS


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"visual encoder 'CLIP_VIT_LARG'.* Did you mean 'CLIP_VIT_LARGE'\?"):
        VISUAL_ENCODERS.get("CLIP_VIT_LARG")


def test_scanning_finds_what_the_released_recipe_names():
    assert "HUBERT_LARGE" in ACOUSTIC_ENCODERS.names()
    assert {"attention", "mean"} <= set(CONNECTORS.names())
    assert "attention" in PREFUSIONS.names()


def test_one_name_cannot_mean_two_things():
    registry = Registry("thing", "affectgpt.core")
    registry.register("a")(int)
    registry.register("a")(int)
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("a")(str)


@pytest.mark.parametrize("look_up", [Registry.names, lambda registry: registry.get("a")], ids=["all", "one"])
@pytest.mark.parametrize("package_first", [True, False])
def test_a_clash_names_both_places_whichever_came_first(tmp_path, monkeypatch, package_first, look_up):
    package = f"some_package_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("import test_registry\nREGISTRY = test_registry.LAZY\n")
    (tmp_path / package / "theirs.py").write_text('from . import REGISTRY\n\nREGISTRY.register("a")(int)\n')
    mine = tmp_path / f"mine_{tmp_path.name}.py"
    mine.write_text("import test_registry\ntest_registry.LAZY.register('a')(str)\n")
    lazy = Registry("thing", package)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_registry", types.SimpleNamespace(LAZY=lazy))
    with pytest.raises(ConfigError) as caught:
        if package_first:
            look_up(lazy)
        import_files([mine])
        look_up(lazy)
    said = str(caught.value)
    assert "thing 'a' is registered twice" in said and "give yours another name" in said
    assert "theirs.py:3" in said and f"{mine.name}:2" in said


def test_did_you_mean_knows_case_and_says_what_is_known():
    assert did_you_mean("mer2032", ["MER2023", "SIMS"]) == " Did you mean 'MER2023'? Known: MER2023, SIMS."
    assert did_you_mean("zzz", []) == " Known: none."
    encoders = ["CLIP_VIT_LARGE", "EVA_CLIP_G", "SigLIP_SO"]
    assert did_you_mean("CLIP", encoders).startswith(" Did you mean 'CLIP_VIT_LARGE'? Known: CLIP_VIT_LARGE, ")
    many = [f"key_{i}" for i in range(20)]
    assert did_you_mean("kye_7", many) == " Did you mean 'key_7'?"
    assert did_you_mean("zzz", many).startswith(" Known: key_0, key_1, ")
