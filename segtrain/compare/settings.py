"""Settings of a comparison: the data and how they are split, the arms, how often each runs, how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

from synth.core.checks import UserError
from synth.core.config import Settings, find_config, load_config, read_yaml


def _as_part(value: object) -> object:
    return {"config": value} if isinstance(value, str | Path) else value


Part = Annotated[dict[str, JsonValue], BeforeValidator(_as_part)]
"""Settings of another command: a YAML file's path, or its settings; `config` names the file to start from."""


class CompareData(Settings):
    """Where the images are: one labelled set (`root`), which is then split by group, or up to three folders.

    `prior` is the folder of a frequency prior for the runs that use one, of no test group; null = each fits its own on
    its labelled pairs. `stored` (pseudo-labels of whatever is unlabelled in a draw: masks/ID.png, perhaps
    confidence/ID.png) and `observers` (further annotators' folders, masks/ID.png of what is labelled in a draw) are for
    the arms whose method reads them.
    """

    root: str | None = None
    labelled: str | None = None
    unlabelled: str | None = None
    test: str | None = None
    mask_map: str | None = None
    channels: int | None = None
    prior: str | None = None
    stored: str | None = None
    observers: tuple[str, ...] = ()


class SplitSettings(Settings):
    """How one labelled set is split: by group, and the same for every arm."""

    seed: int = 0
    test_share: float = Field(0.3, gt=0, lt=1)
    max_test: int | None = Field(None, ge=1)


class SyntheticSettings(Settings):
    """How many pairs each label draw asks of the generator and of copy-paste (before the gates), and their seed."""

    n: int = Field(100, ge=1)
    seed: int = 0


class CompareSettings(Settings):
    """A comparison of arms x label draws x seeds.

    Attributes:
        size: working resolution, px. n_labelled: labelled images of each draw; None = all of the labelled folder.
        n_groups: in the place of n_labelled: every image of so many groups (patients) is labelled.
        method: of the arms that see unlabelled images, unless their name says another ("real+unlabelled:bcp").
        segment, inpaint, translate: settings of those commands; only the arms' generators are fitted.
        draw: how sources are transformed, for every kind of pairs alike. gates: how strict they are.
        referee: network of the second segmenter that says which hard pairs are true to their masks, where
            draw.supply.oversample > 1; by default one unlike the arms'. All else is as in segment.
        test_seed: of the bootstrap and the permutation test.
    """

    data: CompareData = CompareData()
    size: int = Field(64, ge=16)
    n_labelled: int | None = Field(None, ge=1)
    n_groups: int | None = Field(None, ge=1)
    split: SplitSettings = SplitSettings()
    draws: int = Field(3, ge=1)
    seeds: int = Field(1, ge=1)
    arms: tuple[str, ...] = ("real", "real+copypaste", "real+inpaint", "real+unlabelled", "all")
    baseline: str = "real"
    synthetic: SyntheticSettings = SyntheticSettings()
    method: str = "fixmatch_ema"
    segment: Part = Field(default_factory=dict)
    inpaint: Part = Field(default_factory=dict)
    translate: Part = Field(default_factory=dict)
    draw: Part = Field(default_factory=dict)
    referee: Part = Field(default_factory=dict)
    gates: Part = Field(default_factory=dict)
    resamples: int = Field(9999, ge=99)
    test_seed: int = 0
    nsd_tolerance_px: float = Field(1.0, ge=0)


_OWN = {"segment": ("data", "method", "size"), "inpaint": ("data", "out", "size"),
        "translate": ("data", "out", "size"), "draw": (), "gates": (), "referee": ()}
"""What the comparison itself decides for its parts."""

def load_settings(config: str | Path | CompareSettings | dict | None, overrides: Sequence[str] = ()
                  ) -> CompareSettings:
    """Returns the settings with its parts spelt out: files they name are read, every default filled in.

    A file is looked for beside the comparison's own YAML, then in the working directory. Its data, size and method
    are the comparison's; so are the seeds of the segmenters, one for each label draw and repetition.

    Raises:
        UserError: naming the key or file.
    """
    from segtrain.models import partner_of
    from segtrain.settings import ModelSettings, SegmentSettings
    from synth.diffusion.settings import InpaintSettings
    from synth.draw import DrawSettings
    from synth.gan.settings import TranslateSettings
    from synth.gates import GateSettings

    settings = load_config(CompareSettings, config, overrides)
    beside = find_config(config).parent if isinstance(config, str | Path) else Path()
    models = {"segment": SegmentSettings, "inpaint": InpaintSettings, "translate": TranslateSettings,
              "draw": DrawSettings, "gates": GateSettings}
    parts = {name: _spell_out(name, getattr(settings, name), beside=beside, model=m) for name, m in models.items()}
    judge = parts["segment"]["model"]
    partner = partner_of(ModelSettings(**judge)).model_dump(mode="json")
    referee = _spell_out("referee", settings.referee or partner, beside=beside, model=ModelSettings)
    _check_referee(parts["draw"], judge, referee)
    if parts["draw"]["layout"]["source"] == "shape":
        raise UserError("draw.layout.source=shape", rule="a comparison fits no shape model", repair="write transform, "
                        "with layout.grow_px and layout.bend_px for translators")
    return settings.model_copy(update={**parts, "referee": referee})


def _check_referee(draw: dict[str, JsonValue], judge: dict[str, JsonValue], referee: dict[str, JsonValue]) -> None:
    alike = judge["name"] == referee["name"] and (judge["name"] != "unet" or judge["encoder"] == referee["encoder"])
    if alike and (draw["supply"]["oversample"] > 1 or draw["curate"]["min_agreement"] > 0):
        raise UserError(f"referee {referee['name']}", rule="it has the judge's architecture (segment.model); what is "
                        "hard for the one must be settled by another", repair="name another network or encoder, or "
                        "leave referee out")


def _spell_out(name: str, part: dict[str, JsonValue], *, beside: Path, model: type[Settings]) -> dict[str, JsonValue]:
    part = dict(part)
    source = part.pop("config", None)
    for key in _OWN[name]:
        if key in part:
            raise UserError(f"{name}.{key}", rule="the comparison decides this for every run alike",
                            repair=f"write {key}= without {name}." if key != "out" else "drop it")
    base = _read(str(source), beside) if source is not None else {}
    full = load_config(model, _merge({k: v for k, v in base.items() if k not in _OWN[name]}, part))
    return full.model_dump(mode="json", exclude=set(_OWN[name]))


def _read(name: str, beside: Path) -> dict[str, JsonValue]:
    found = beside / name if (beside / name).is_file() else find_config(name)
    return read_yaml(found.read_text(encoding="utf-8")) or {}


def _merge(base: dict[str, JsonValue], over: dict[str, JsonValue]) -> dict[str, JsonValue]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
