"""What goes into the runs of a comparison, by content: images, files that settings name, choices left to the data."""

from __future__ import annotations

from functools import cached_property

from pydantic import JsonValue

from segtrain.compare.data import Parts, fingerprint
from segtrain.compare.settings import CompareSettings
from segtrain.compare.splits import LabelDraw
from segtrain.models.weights import identify, identify_all
from segtrain.settings import ModelSettings, SegmentSettings


class Content:
    """What runs are known by, each found once: a path says nothing of what lies there."""

    def __init__(self, settings: CompareSettings, parts: Parts) -> None:
        self.settings, self.parts = settings, parts
        self._found: dict[tuple[str, int], str | None] = {}

    def labelled(self, draw: LabelDraw) -> str | None:
        """Returns the fingerprint of the pairs that `draw` labels."""
        key = ("labelled", draw.index)
        if key not in self._found:
            self._found[key] = fingerprint(self.parts.labelled_of(draw))
        return self._found[key]

    def unlabelled(self, draw: LabelDraw) -> str | None:
        """Returns the fingerprint of the images that `draw` leaves unlabelled, None without any."""
        key = ("unlabelled", draw.index)
        if key not in self._found:
            self._found[key] = fingerprint(self.parts.unlabelled_of(draw))
        return self._found[key]

    @cached_property
    def training(self) -> str | None:
        """Fingerprint of every training image, without masks."""
        return fingerprint(self.parts.training())

    @cached_property
    def segment(self) -> SegmentSettings:
        """The segmenters' settings, weights named by what they are."""
        return identify_all(SegmentSettings(**self.settings.segment))

    @cached_property
    def referee(self) -> list[dict[str, JsonValue]]:
        """The referees' settings: the segmenters', and their own network."""
        named = {"model": self.segment.model, "second": self.segment.second}
        models = {key: model and model.model_dump(mode="json") for key, model in named.items()}
        own = identify(ModelSettings(**self.settings.referee))
        return [{**self.settings.segment, **models}, own.model_dump(mode="json")]

    def sees_masks(self, engine: str) -> bool:
        """Returns whether a generator learns from label masks, and so must be fitted anew for every label draw."""
        return engine != "inpaint" or bool(self.settings.inpaint["denoiser"]["labels"])

    def space(self, draw: LabelDraw) -> str:
        """Returns `inpaint.autoencoder.kind`, decided where a generator of several label draws leaves it open.

        Else the masks of one draw would decide it for the others.
        """
        kind, key = self.settings.inpaint["autoencoder"]["kind"], ("space", draw.index)
        if kind != "auto" or self.codec or self.sees_masks("inpaint"):
            return kind
        if key not in self._found:
            from synth.diffusion.plan import resolve_settings
            from synth.diffusion.settings import InpaintSettings

            whole = InpaintSettings(**self.settings.inpaint, size=self.settings.size)
            self._found[key] = resolve_settings(whole, self.parts.labelled_of(draw)).autoencoder.kind
        return self._found[key]

    @cached_property
    def codec(self) -> str | None:
        """Hash of the autoencoder that `inpaint.autoencoder.pretrained` names, None if it names none."""
        from synth.diffusion.codec import codec_hash, load_codec

        folder = self.settings.inpaint["autoencoder"]["pretrained"]
        return folder and codec_hash(load_codec(folder, channels=self.parts.labelled.info.channels))

    def fitting(self, engine: str, draw: LabelDraw) -> dict[str, JsonValue]:
        """Returns a generator's settings but for those of drawing."""
        part = {k: v for k, v in getattr(self.settings, engine).items() if k != "sampler"}
        if engine != "inpaint":
            return part
        return {**part, "autoencoder": {**part["autoencoder"], "kind": self.space(draw), "pretrained": self.codec}}
