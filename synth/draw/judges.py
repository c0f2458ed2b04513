"""What the command `draw` needs beside a generator: the judge, the referee, and checks of what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.shell import say
from synth.draw.curation import CurateSettings, Curation, check_models, default_curation
from synth.draw.free import check_layout
from synth.draw.supply import Supply, check_judge, default_supply
from synth.gates.gates import GateSettings, Predict
from synth.layouts import ShapeModel

if TYPE_CHECKING:
    from synth.draw.settings import DrawSettings


class Segmenter(Protocol):
    """A fitted segmenter as a trainer's loader returns it."""

    size: int
    predict: Predict

    def content_hash(self) -> str:
        """Returns what identifies its weights and configuration."""


def check_strangers(judge: Segmenter, referee: Segmenter, *, where: str) -> None:
    """Returns nothing; raises if judge and referee are one and the same model, and warns if they are of one design.

    Raises:
        UserError: naming the hash that both have: what a model says of itself is no agreement.
    """
    hashes = [one.content_hash() for one in (judge, referee) if hasattr(one, "content_hash")]
    if judge is referee or len(hashes) == 2 and hashes[0] == hashes[1]:
        raise UserError(f"referee={where}", rule=f"it is the judge ({hashes[0] if hashes else 'the same object'}), and "
                        "a model always agrees with itself", repair="fit the referee with another model.name")
    designs = [getattr(getattr(one, "config", None), "model", None) for one in (judge, referee)]
    if designs[0] is not None and designs[0] == designs[1]:
        say(f"warning: referee={where} has the architecture of the judge; they err alike, so that what is hard seldom "
            "counts as consistent. Repair: fit the referee with another model.name or encoder")


def load_pair(judge_dir: str | None, referee_dir: str | None, *, size: int
              ) -> tuple[Segmenter | None, Segmenter | None]:
    """Returns judge and referee, each None without a folder.

    Raises:
        UserError: as `load_segmenter` and `check_strangers`.
    """
    judge = load_segmenter(judge_dir, size=size, role="judge") if judge_dir else None
    referee = load_segmenter(referee_dir, size=size, role="referee") if referee_dir else None
    if judge is not None and referee is not None:
        check_strangers(judge, referee, where=referee_dir)
    return judge, referee


def load_segmenter(folder: str, *, size: int, role: str) -> Segmenter:
    """Returns the fitted segmenter. Trainers register their loader as an entry point: `synth` imports no trainer.

    Raises:
        UserError: if no trainer is installed, or the segmenter works at another size.
    """
    loaders = entry_points(group="pairsmith.judges")
    if not loaders:
        raise UserError(f"{role}={folder}", rule="no trainer is installed that could load it",
                        repair=f"install the package with pip, or leave {role}= out")
    found = next(iter(loaders)).load()(folder)
    if found.size != size:
        raise UserError(f"{role}={folder}", rule=f"it works at {found.size} px, the generator at {size} px",
                        repair=f"train it with size={size}")
    return found


def load_judge(folder: str, *, size: int) -> Predict:
    """Returns what the judge says of unit images (B, C, size, size): probabilities (B, K, size, size)."""
    return load_segmenter(folder, size=size, role="judge").predict


def load_supply(settings: DrawSettings, judge_dir: str | None, referee_dir: str | None, *, labelled: PairSet,
                size: int) -> Supply | None:
    """Returns the supply that the settings ask for, None if all that passes the gates is kept."""
    if settings.supply.oversample == 1:
        return None
    predicts = [one and one.predict for one in load_pair(judge_dir, referee_dir, size=size)]
    return default_supply(*predicts, labelled, size=size, settings=settings.supply)


def load_curation(settings: CurateSettings, judge_dir: str | None, referee_dir: str | None, *, labelled: PairSet,
                  held_out: PairSet | None, size: int) -> Curation | None:
    """Returns the rules of curation that the settings ask for, None if all are off."""
    if settings.is_off:
        return None
    predicts = [one and one.predict for one in load_pair(judge_dir, referee_dir, size=size)]
    return default_curation(*predicts, labelled, size=size, settings=settings, held_out=held_out)


def load_shape(folder: str | None, labelled: PairSet, *, size: int) -> ShapeModel | None:
    """Returns the shape model of `folder`, fitted for the classes of `labelled` at `size`; None without a folder."""
    return ShapeModel.load(folder, size=size, n_classes=labelled.info.n_classes) if folder else None


def check_supply(settings: DrawSettings, judge_dir: str | None, referee_dir: str | None) -> None:
    """Returns nothing; raises UserError if judge and referee are not what the settings call for."""
    check_judge(settings.supply, there=bool(judge_dir))
    check_models(settings.curate, judge=bool(judge_dir), referee=bool(referee_dir))
    if referee_dir and settings.supply.oversample == 1 and not settings.curate.min_agreement:
        raise UserError(f"referee={referee_dir}", rule="with supply.oversample=1 there is nothing to choose, so it "
                        "would not be used", repair="add supply.oversample=4 or curate.min_agreement=0.8, or leave "
                        "referee= out")


def check_held_out(settings: DrawSettings, held_out: str | None) -> None:
    """Returns nothing; raises UserError if there are held-out pairs and no rule that they would calibrate."""
    if held_out and settings.curate.is_off:
        raise UserError(f"data.held_out={held_out}", rule="no rule of curation is on that it would calibrate",
                        repair="add curate.ignore=1.25 or curate.min_agreement=0.8, or leave it out")


def check_painted(settings: DrawSettings, strictness: GateSettings, folders: Mapping[str, str | None], *,
                  native: bool) -> None:
    """Returns nothing; raises UserError if a run that paints is told something that nobody of it reads.

    Args:
        strictness: of the gates. folders: by the words that name them. native: whether the generator paints images at
            their own size.
    """
    plain, told = type(settings)(), strictness.model_fields_set
    unread = {"window=": (settings.window != plain.window and not native, "a generator of scale native"),
              "clear.": (settings.clear != plain.clear and not folders["data.hosts"], "data.hosts=")}
    for word in ("faithfulness", "confidence", "max_false_foreground", "clear_px"):
        unread[f"gates.{word}="] = (word in told and not folders["judge"], "judge=")
    unread["gates.plausibility="] = (strictness.plausibility > 0 and "plausibility" in told and not folders["shape"],
                                     "shape=")
    for name, (there, reader) in unread.items():
        if there:
            raise UserError(name, rule=f"nothing reads it without {reader}",
                            repair=f"give {reader}, or leave {name} out")


def check_unpainted(settings: DrawSettings, changes: Mapping[str, JsonValue], folders: Mapping[str, str | None]
                    ) -> None:
    """Returns nothing; raises UserError if a run that paints nothing is told how to paint, or to choose.

    Args:
        changes: of the sampler. folders: that such a run does not read, by the words that name them.
    """
    if not settings.curate.is_off:
        raise UserError("--no-paint", rule="transformed sources are written as they come, with their own labels",
                        repair="leave curate. out")
    if settings.supply.oversample > 1:
        raise UserError("--no-paint", rule="transformed sources are written as they come, none is chosen",
                        repair="leave supply.oversample= out")
    check_layout(settings.layout, None)
    plain = type(settings)()
    told = {"repaint_share=": settings.repaint_share > 0, "window=": settings.window != plain.window,
            "clear.": settings.clear != plain.clear, "preset= and sampler.": changes,
            **{f"{word}=": folder for word, folder in folders.items()}}
    for name, there in told.items():
        if there:
            raise UserError("--no-paint", rule="nothing is painted, so nothing can be said of how",
                            repair=f"leave {name} out")
