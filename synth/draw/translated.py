"""Real images without masks in another appearance: a folder of further unlabelled images, each with its parent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock

from synth.core.checks import UserError, check_unique
from synth.core.files import claim_folder, hash_json, sweep
from synth.core.pairs import ImageSet, Item, Pair, Provenance
from synth.core.rng import derive_seed, one_thread
from synth.core.space import from_channels, pixels_to_unit, resize_image, to_channels, unit_to_pixels
from synth.core.taught import joined, stem_of
from synth.draw.painters import seeds_apart
from synth.draw.shards import ledger_path, shard_is_whole, write_missing
from synth.formats import load_images
from synth.formats.folder import SPACING
from synth.formats.imagefolder import PIECEWISE, check_file_name, finish_imagefolder, known_of, put_image
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.generator import Generator, shows_source
from synth.pipelines import check_depth

SHARD_SIZE = 16
"""Images that are noted in the ledger together: what a kill costs at most."""


def translate_images(generator: Generator, images: ImageSet, *, out: str | Path, n: int = 1, seed: int = 0,
                     originals: bool = True) -> ImageSet | None:
    """Returns the images in other appearances, n of each, written to `out` as an imagefolder at the generator's size.

    An image and its translations share a group, so a split by groups never parts them. Which styles are drawn follows
    (seed, id): the same for any order of the images. Running again finishes what is missing; under `accelerate launch`
    each process takes its share, and a process that ends before the others returns None.

    Args:
        generator: one that shows its source, of kind appearance (its style set or not) or spectral.
        originals: whether the images themselves are written too, as they are: one folder then is all a trainer needs.

    Raises:
        UserError: if the generator paints, the images do not fit it, or `out` holds something else.
    """
    _check(generator, images, n=n)
    work: list[tuple[int, int | None]] = [(row, None) for row in range(len(images))] if originals else []
    work += [(row, k) for row in range(len(images)) for k in range(n)]
    _check_names([_name(images.items[row], generator, k) for row, k in work], images.where)
    known = known_of(images)
    domains = generator.domains if isinstance(generator, AppearancePipeline) else ()
    folder = claim_folder(Path(out), kind=PIECEWISE, identity={
        "generator": generator.content_hash(), "sampler": generator.sampler_settings(), "n": n, "seed": seed,
        "originals": originals, "images": images.native(1).without_masks().fingerprint(),
        **({"known": hash_json(known)} if any(known.values()) else {})})
    shards = [work[i:i + SHARD_SIZE] for i in range(0, len(work), SHARD_SIZE)]

    def write_one(shard: int) -> dict[str, object]:
        files, rows = {}, []
        for row, k in shards[shard]:
            parent = pair = images[row]
            beside = known[parent.id]
            if k is not None:
                pair = _translated(generator, parent, images, k, seed=seed)
                beside = _known(pair, parent, known=beside, domains=domains)
            file, line = put_image(pair, folder)
            files |= file
            rows.append(line | beside)
        return {"files": files, "rows": rows}

    with one_thread():  # else files would depend on how many processes share the cores
        write_missing(folder, len(shards), write_one)
    if not all(shard_is_whole(folder, i) for i in range(len(shards))):
        return None  # another process is still at work; whoever ends last lists the images
    with FileLock(folder / ".finish.lock"):
        sweep(folder)  # all shards are whole: nobody is writing any more
        entries = [json.loads(ledger_path(folder, i).read_text(encoding="utf-8")) for i in range(len(shards))]
        if (taught := joined([generator.taught, images.taught])) is not None:
            taught.save(folder)
        finish_imagefolder(folder, images.info, [row for entry in entries for row in entry["rows"]])
    return load_images(out, like=images.info)


def _check(generator: Generator, images: ImageSet, *, n: int) -> None:
    if not shows_source(generator.sampler_settings()):
        raise UserError(f"generator of kind {generator.kind}", rule="it paints; images without masks would no longer "
                        "show what they showed", repair="give one of kind appearance or spectral")
    info = images.info
    check_depth(generator, info, images.where)  # first: the command has given a 16-bit set the generator's range
    if (generator.channels, generator.intensity_range) != (info.channels, tuple(info.intensity_range)):
        raise UserError(images.where, rule=f"images of {info.channels} channel(s), range {info.intensity_range}, do "
                        f"not fit a generator of {generator.channels} channel(s), range {generator.intensity_range}",
                        repair="give the kind of images it was fitted on")
    if n < 1:
        raise UserError(f"n={n}", rule="there is nothing to translate", repair="write n=1")


def _check_names(names: list[str], where: str) -> None:
    check_unique(names, where)
    for name in names:
        check_file_name(name)


def _name(parent: Item | Pair, generator: Generator, k: int | None) -> str:
    return parent.id if k is None else f"{parent.id}-{generator.kind}-{k}"


def _known(made: Pair, parent: Pair, *, known: Mapping[str, float | str],
           domains: Sequence[str]) -> dict[str, float | str]:
    """Returns what is known of a translation: its parent's field over its own pixels, and the domain that it shows.

    Args:
        known: of the parent. domains: the styles that are some. Of any other change nobody can say where it leads.
    """
    sides = zip(SPACING, parent.image.shape[:2], made.image.shape[:2], strict=True)
    spacing = {key: known[key] * old / new for key, old, new in sides if key in known}
    style = json.loads(made.made.layout).get("style")
    return {**spacing, **({"domain": style} if style in domains else {})}


def _translated(generator: Generator, parent: Pair, images: ImageSet, k: int, *, seed: int) -> Pair:
    """Returns translation k of an image; it counts what the image does."""
    (own_seed,) = seeds_apart(generator, [derive_seed(seed, "translated", parent.id, k)], [(parent.id, parent.group)])
    low_high = generator.intensity_range
    unit = pixels_to_unit(resize_image(to_channels(parent.image), generator.size)[None], low_high)
    drawn = generator.sample(unit, torch.zeros(1, *unit.shape[2:], dtype=torch.long), seeds=[own_seed])
    style = {"style": generator.styles[generator.styles_for(unit, seeds=[own_seed])[0]]} if isinstance(
        generator, AppearancePipeline) else {}
    lent = generator.lenders([own_seed])[0]  # whose amplitudes it shows: to be recalled with them
    parents, groups = zip((parent.id, parent.group), *([lent] if lent else []), strict=True)
    made = Provenance(tuple(dict.fromkeys(parents)), tuple(dict.fromkeys((*groups, *stem_of(parent)))), own_seed,
                      generator.content_hash(), json.dumps({"translated": True, **style}, sort_keys=True),
                      json.dumps(generator.sampler_settings(), sort_keys=True))
    return Pair(_name(parent, generator, k), parent.group,
                from_channels(unit_to_pixels(drawn, low_high, images.info.dtype)[0]), None, "synthetic", made,
                parent.weight)
