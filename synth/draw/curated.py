"""Curates a set that was drawn before, by any engine: the rules, then hardness and a budget, into a set of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field

from synth.card import dataset_card
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings, load_config
from synth.core.files import claim_folder, hash_json, sha256, sweep, write_json
from synth.core.pairs import Pair, PairSet
from synth.core.rng import one_thread, sample_rng
from synth.core.space import pixels_to_unit, to_channels
from synth.draw.curation import CurateSettings, Curation, curate_batch, default_curation
from synth.draw.shards import Plan, kept_hash, ledger_path, shard_is_whole, write_shards
from synth.draw.supply import Supply, SupplySettings, default_supply, score_supply, select
from synth.formats import read_shards, shard_name, write_dataset_files
from synth.formats.shards import shard_files
from synth.gates import Verdict
from synth.gates.gates import Predict
from synth.generator import CURATED, kept_by

log = logging.getLogger(__name__)

BUDGET = "budget"
"""Why a pair that every rule let pass is not among the curated ones: there was room for fewer."""


class RankSettings(Settings):
    """Which pairs go first where there is room for fewer than pass. As of the supply, which see.

    Attributes:
        hard_share: of the budget goes to the hardest of those that the referee finds consistent. clip: quantile of
            hardness above which a pair is likely a defect. min_consistency: share of the referee's median Dice.
    """

    hard_share: float = Field(SupplySettings().hard_share, ge=0, le=1)
    clip: float = Field(SupplySettings().clip, gt=0, le=1)
    min_consistency: float = Field(SupplySettings().min_consistency, ge=0, le=1)


class SelectSettings(Settings):
    """How a drawn set is curated.

    Attributes:
        curate: which rules are on. budget: most pairs that stay; null = all that pass. rank: which, then.
        seed: of the part that is chosen at random. shard_size: pairs per file. batch_size: pairs looked at together.
    """

    curate: CurateSettings = CurateSettings()
    budget: int | None = Field(None, ge=1)
    rank: RankSettings = RankSettings()
    seed: int = 0
    shard_size: int = Field(32, ge=1)
    batch_size: int = Field(16, ge=1)


@dataclass(frozen=True)
class _Judged:
    """What became of one pair: its labels (H, W) uint8, its scores, and why it goes; "" = it passes."""

    labels: np.ndarray
    scores: dict[str, float]
    reason: str


def side_of(made: PairSet) -> int:
    """Returns the side of the pairs, all of them square and alike."""
    shapes = {pair.image.shape[:2] for pair in made}
    side = min(shapes)[0]
    if shapes != {(side, side)}:
        raise UserError(made.where, rule="its pairs have several sizes, and judge and referee know one", repair="draw "
                        "it with curate.ignore= and curate.min_agreement=, or at one size")
    return side


def _check_pair(pair: Pair, where: str) -> None:
    made = pair.made
    if made is None:
        raise UserError(f"{where}: {pair.id}", rule="it has no provenance, so nobody drew it", repair="give the out= "
                        "of synth draw; a real pair's labels are not for a judge to take away")
    if CURATED in json.loads(made.settings or "{}"):
        raise UserError(f"{where}: {pair.id}", rule="it was curated before, and its own labels are gone",
                        repair="curate the set as it was drawn")
    if made.kept_sha256 and kept_hash(pair.image, pair.mask, made.settings) != made.kept_sha256:
        raise UserError(f"{where}: {pair.id}", rule="a kept pixel is not as it was drawn", repair="run synth audit "
                        "there, and draw the set again")


def _judge_batch(pairs: Sequence[Pair], made: PairSet, curation: Curation | None,
                 supply: Supply | None) -> Iterator[_Judged]:
    for pair in pairs:
        _check_pair(pair, made.where)
    unit = pixels_to_unit(np.stack([to_channels(pair.image) for pair in pairs]), made.info.intensity_range)
    labels = torch.from_numpy(np.stack([pair.mask for pair in pairs]).astype(np.int64))
    verdicts = [Verdict(dict(pair.made.scores), kept=True, reason="") for pair in pairs]
    if curation is not None:
        kept = torch.cat([kept_by(one[None], json.loads(pair.made.settings or "{}"))
                          for pair, one in zip(pairs, labels, strict=True)])
        labels, verdicts = curate_batch(unit, labels, verdicts, curation, kept=kept)
    further = score_supply(unit, labels, supply) if supply is not None else [{}] * len(pairs)
    for one, verdict, scores in zip(labels, verdicts, further, strict=True):
        yield _Judged(one.numpy().astype(np.uint8), {**verdict.scores, **scores}, verdict.reason)


def check_budget(settings: SelectSettings, *, judge: bool) -> None:
    """Returns nothing; raises if there is a budget and no judge to say which pairs are hard.

    Raises:
        UserError: naming the budget.
    """
    if settings.budget is not None and not judge:
        raise UserError(f"budget={settings.budget}", rule="a judge has to say which pairs are hard, and there is none",
                        repair="give judge= and referee=, two segmenters of different architecture, or leave it out")


def choose(judged: Sequence[_Judged], settings: SelectSettings, supply: Supply | None) -> list[int]:
    """Returns which of the judged pairs stay: those that pass, at most `budget` of them by the supply's rule."""
    passed = [i for i, one in enumerate(judged) if not one.reason]
    if settings.budget is None or len(passed) <= settings.budget:
        return passed
    scores = [judged[i].scores for i in passed]
    chosen = select([s["hardness"] for s in scores], [s["consistency"] for s in scores], quota=settings.budget,
                    min_consistency=supply.min_consistency, settings=supply.settings,
                    rng=sample_rng(settings.seed, BUDGET))
    return [passed[i] for i in chosen]


def _remade(pair: Pair, judged: _Judged, identity: str, *, kept: bool) -> Pair:
    """Returns a pair with its curated labels; its kept pixels are hashed anew, those that are left of them."""
    words = {**json.loads(pair.made.settings or "{}"), CURATED: identity}
    settings = json.dumps(words, sort_keys=True)
    made = replace(pair.made, settings=settings, scores=judged.scores, verdict="kept" if kept else "rejected",
                   reason="" if kept else judged.reason or BUDGET,
                   kept_sha256=pair.made.kept_sha256 and kept_hash(pair.image, judged.labels, settings))
    return replace(pair, mask=judged.labels, made=made)


def curate(  # noqa: PLR0913 - a set, the two who judge it, and what they are calibrated on
    made: str | Path, judge: Predict | None, referee: Predict | None, labelled: PairSet, *, out: str | Path,
    held_out: PairSet | None = None, models: tuple[str, str] = ("", ""),
    config: str | Path | dict | SelectSettings | None = None, overrides: Sequence[str] = (),
) -> PairSet | None:
    """Returns the pairs of a drawn set that pass the rules, at most a budget of them; `out` is a drawn set like any.

    The pairs that go lie in its split of rejected ones, each with the reason. Ids, parents and seeds stay, so that an
    export without a group still leaves out every child of it. None while another process still writes its shards.

    Args:
        made: folder of a drawn set; what its own gates rejected is not looked at again.
        judge, referee: unit images -> probabilities, of two architectures. models: what identifies them.
        labelled: real pairs that judge and referee were trained on. held_out: real pairs that they were not.

    Raises:
        UserError: if nothing is asked for or nothing passes, a model is missing, the pairs are no drawn ones, a
            parent's group is among the held-out pairs, or `out` holds another run.
    """
    settings = load_config(SelectSettings, config, overrides)
    check_budget(settings, judge=judge is not None)
    pairs = read_shards(Path(made))
    _check_parents(pairs, held_out)
    size = side_of(pairs)
    curation = default_curation(judge, referee, labelled, size=size, settings=settings.curate, held_out=held_out)
    # One candidate more than wanted is a choice already; how many there are does not matter to the rule.
    ranks = SupplySettings(oversample=2 if settings.budget else 1, **settings.rank.model_dump())
    supply = default_supply(judge, referee, labelled if held_out is None else held_out, size=size, settings=ranks)
    if curation is None and supply is None:
        raise UserError("curate", rule="no rule is on and there is no budget, so there is nothing to do",
                        repair="add curate.ignore=1.25, curate.min_agreement=0.8 or budget=100")
    identity = {"settings": settings.model_dump(mode="json"), "made": [_digest(Path(made)), len(pairs)],
                "models": list(models), "curation": curation.identity if curation else "none",
                "supply": supply.identity if supply else "none"}
    folder = claim_folder(Path(out), kind="curate", identity=identity)
    with one_thread():  # else scores would depend on how many processes share the cores
        rows = [range(i, min(i + settings.batch_size, len(pairs))) for i in range(0, len(pairs), settings.batch_size)]
        judged = [one for batch in rows for one in _judge_batch([pairs[i] for i in batch], pairs, curation, supply)]
    return _write(folder, pairs, judged, set(choose(judged, settings, supply)), settings=settings, curation=curation,
                  name=hash_json(identity))


def _digest(folder: Path) -> str:
    """Returns what identifies the files of a drawn set: the hashes in its ledger, without one those of its files."""
    ledger = sorted((folder / "ledger").glob("*.json"))
    if not ledger:
        return hash_json([sha256(path.read_bytes()) for path in shard_files(folder, "train")])
    return hash_json([json.loads(path.read_text(encoding="utf-8"))["files"] for path in ledger])


def _check_parents(pairs: PairSet, held_out: PairSet | None) -> None:
    groups = set(held_out.groups) if held_out is not None else set()
    for item in pairs.items:
        for group in (item.group, *(item.made.parent_groups if item.made else ())):
            if group in groups:
                raise UserError(f"{pairs.where}: {item.id}", rule=f"its parents' group {group} is among the held-out "
                                "pairs, so generator or judge may have seen those", repair="give real pairs of groups "
                                "that nothing was fitted on as data.held_out=")


def _write(folder: Path, pairs: PairSet, judged: Sequence[_Judged], stay: set[int], *, settings: SelectSettings,  # noqa: PLR0913
           curation: Curation | None, name: str) -> PairSet | None:
    order = sorted(range(len(pairs)), key=lambda i: i not in stay)  # the kept ones first, each part in its own order
    n_kept, n_left = len(stay), len(pairs) - len(stay)
    if not n_kept:
        raise UserError(str(pairs.where), rule=f"none of its {n_left} pairs passes", repair="raise "
                        "curate.ignore, lower curate.min_agreement, or train generator, judge and referee longer")
    plan = Plan(len(pairs), settings.shard_size, settings.batch_size, 1)
    write_shards(folder, plan, _shards(pairs, judged, order, n_kept=n_kept, size=settings.shard_size, name=name))
    if not all(shard_is_whole(folder, i) for i in range(plan.n_shards)):
        return None  # another process is still at work; whoever ends last writes the card
    with FileLock(folder / ".finish.lock"):
        _tidy(folder, plan)
        _write_facts(folder, pairs, judged, n_kept=n_kept, settings=settings, curation=curation, name=name)
    return read_shards(folder)


def _write_facts(folder: Path, pairs: PairSet, judged: Sequence[_Judged], *, n_kept: int, settings: SelectSettings,  # noqa: PLR0913
                 curation: Curation | None, name: str) -> None:
    n_left = len(pairs) - n_kept
    lost = sum(int((one.labels == IGNORE).sum()) for one in judged) / sum(one.labels.size for one in judged)
    write_json(folder / "curation.json", {
        "n_kept": n_kept, "n_left_out": n_left, "share_of_pixels_ignored": round(lost, 5),
        "class_losses": curation.losses.means if curation and curation.losses else None,
        "class_losses_of": curation.losses.of if curation and curation.losses else None,
        "min_agreement": curation.min_agreement if curation else None})
    if pairs.taught is not None:
        pairs.taught.save(folder)
    made = pairs.items[0].made
    write_dataset_files(folder, pairs.info, dataset_card(
        n_kept=n_kept, n_rejected=n_left, n_asked=settings.budget or len(pairs), classes=pairs.info.classes,
        generator=made.generator, settings=json.dumps({**json.loads(made.settings or "{}"), CURATED: name}),
        groups=[group for item in pairs.items for group in item.made.parent_groups]))


def _shards(pairs: PairSet, judged: Sequence[_Judged], order: Sequence[int], *, n_kept: int, size: int,  # noqa: PLR0913
            name: str) -> Callable[[int], tuple[list[Pair], list[Pair]]]:
    def one(shard: int) -> tuple[list[Pair], list[Pair]]:
        places = range(shard * size, min((shard + 1) * size, len(order)))
        done = [_remade(pairs[order[k]], judged[order[k]], name, kept=k < n_kept) for k in places]
        n = sum(k < n_kept for k in places)
        return done[:n], done[n:]

    return one


def _tidy(folder: Path, plan: Plan) -> None:
    """Removes what half-written files there are, and a split without a single row, which could not be opened."""
    sweep(folder)  # all shards are whole: nobody is writing any more
    entries = [json.loads(ledger_path(folder, i).read_text(encoding="utf-8")) for i in range(plan.n_shards)]
    if not any(entry["n_rejected"] for entry in entries):
        for i in range(plan.n_shards):
            (folder / shard_name("rejected", i, plan.n_shards)).unlink(missing_ok=True)
