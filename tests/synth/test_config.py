"""Where settings are read from: the user's own file first, then the one of that name that Pairsmith ships."""

import math
import re

import pytest

from synth.core.checks import UserError
from synth.core.config import SHIPPED, Settings, find_config, load_config, read_yaml
from synth.core.loop import LoopSettings
from synth.diffusion.settings import InpaintSettings


class Texts(Settings):
    weights: str = ""
    name: str = "unet"
    groups: tuple[str, ...] = ()


class Inner(Settings):
    lr: float = 0.1
    steps: int = 1


class Middle(Settings):
    inner: Inner = Inner()
    share: float = 0.5


class Outer(Settings):
    inner: Inner = Inner(steps=20)
    middle: Middle = Middle(inner=Inner(steps=30), share=0.2)


def test_a_group_given_in_part_keeps_the_defaults_of_what_holds_it():
    found = load_config(Outer, {"inner": {"lr": 1.0}}, ["middle.inner.lr=2"])
    assert found == Outer(inner=Inner(lr=1.0, steps=20), middle=Middle(inner=Inner(lr=2.0, steps=30), share=0.2))
    assert load_config(Outer, found) == found
    assert load_config(Outer, {"inner": {"steps": 3}}).inner == Inner(steps=3)
    assert load_config(InpaintSettings, None, ["denoiser.loop.log_every=7"]).denoiser.loop.steps == 20000


def test_a_shipped_preset_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/tiny/inpaint.yaml") == SHIPPED / "configs" / "tiny" / "inpaint.yaml"
    assert load_config(InpaintSettings, "configs/tiny/inpaint.yaml").size == 64


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    own = tmp_path / "configs" / "tiny"
    own.mkdir(parents=True)
    (own / "inpaint.yaml").write_text("size: 32\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(InpaintSettings, "configs/tiny/inpaint.yaml").size == 32


@pytest.mark.parametrize("path", ["configs/none.yaml", "tiny/inpaint.yaml", "/configs/inpaint.yaml"])
def test_what_is_nowhere_names_the_presets(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file.*configs/tiny/inpaint\.yaml"):
        find_config(path)


@pytest.mark.parametrize(("override", "rule"), [("steps=[1", "expected"), ("steps='1", "unexpected end")])
def test_an_override_that_is_no_yaml_is_named(override, rule):
    with pytest.raises(UserError, match=f"{re.escape(override)}.*not YAML.*{rule}.*Repair"):
        load_config(LoopSettings, None, [override])


def test_no_is_a_word(tmp_path):
    (tmp_path / "loop.yaml").write_text("mixed_precision: no\n")
    assert load_config(LoopSettings, tmp_path / "loop.yaml").mixed_precision == "no"
    assert load_config(LoopSettings, {"mixed_precision": "bf16"}, ["mixed_precision=no"]).mixed_precision == "no"
    assert load_config(InpaintSettings, None, ["sampler.precision=no"]).sampler.precision == "no"


@pytest.mark.parametrize("text", ["007", "2024_02_02", "2024-02-03", "1:1", "0x10", "1.50", "on", "no", "yes", "1e3",
                                  "set #2", "a: b", "@here", "C:\\data", "~/data", "+5", "2024", "-3", "1.5"])
def test_a_word_stays_as_it_was_typed(tmp_path, text):
    assert load_config(Texts, None, [f"name={text}"]).name == text
    if not set(text) & set("#:@"):
        assert load_config(Texts, None, [f"groups=[{text}, x]"]).groups == (text, "x")
        (tmp_path / "own.yaml").write_text(f"name: {text}\n")
        assert load_config(Texts, tmp_path / "own.yaml").name == text


def test_numbers_and_truth_are_still_read(tmp_path):
    (tmp_path / "own.yaml").write_text("steps: 12\nrate: 1.0e-05\non: true\nmost: .inf\nseed: 0\nno: -2\nnull_: null\n")
    expected = {"steps": 12, "rate": 1e-5, "on": True, "most": math.inf, "seed": 0, "no": -2, "null_": None}
    assert read_yaml((tmp_path / "own.yaml").read_text()) == expected
    read = load_config(LoopSettings, None, ["steps=12", "report_to=null", "seed=1"])
    assert (read.steps, read.report_to, read.seed) == (12, None, 1)
    assert load_config(InpaintSettings, None, ["denoiser.lr=1.50e-3", "denoiser.labels=off"]).denoiser.lr == 1.5e-3


def test_a_picture_given_as_settings_is_refused(tmp_path):
    (tmp_path / "grid.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"grid\.png: not YAML"):
        load_config(InpaintSettings, tmp_path / "grid.png")


def test_nothing_behind_the_sign_is_an_empty_text_where_that_is_the_default():
    assert load_config(Texts, {"weights": "imagenet"}, ["weights="]).weights == ""
    with pytest.raises(UserError, match="name: Input should be a valid string"):
        load_config(Texts, None, ["name="])


def test_one_word_for_a_list_says_how_a_list_is_written():
    with pytest.raises(UserError, match=r"groups: it takes a list\. Repair: write groups='\[patient_01\]'"):
        load_config(Texts, None, ["groups=patient_01"])


def test_a_key_that_stands_twice_is_refused_and_a_merged_one_is_not(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("inner: {lr: 0.2}\nmiddle: {share: 0.1}\ninner: {steps: 3}\n")
    with pytest.raises(UserError, match="the key 'inner' stands there twice"):
        load_config(Outer, path)
    assert read_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}")["d"] == {"b": 3, "c": 2}
