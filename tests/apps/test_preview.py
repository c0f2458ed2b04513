"""The preview page on a real, untrained generator: what is kept, what is refused, and who can reach it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from PIL import Image

import synth
from apps import preview
from apps.studio import Ask, Folders, Studio, open_studio, paint, read_upload
from synth.core.checks import UserError
from synth.diffusion.autoencoder import build_autoencoder
from synth.diffusion.denoiser import build_denoiser, build_scheduler
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import AutoencoderSettings, DenoiserSettings, SamplerSettings
from synth.formats import write_folder
from synth.gan.recipe import build_translator
from synth.gan.settings import TranslateSettings
from synth.gan.translate import TranslatePipeline
from synth.gates import run_gates
from synth.layouts import detect_frame

SIZE = 32
ASK = Ask(seed=5, n_steps=4, n_variants=2)


def _generator() -> InpaintPipeline:
    """Returns an untrained generator of grey images, 32 px."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_autoencoder(AutoencoderSettings(widths=(8, 16, 16)), channels=1, size=SIZE)
        settings = DenoiserSettings(widths=(32, 32), attention=(False, False), layers=1)
        unet = build_denoiser(settings, latent_channels=4, latent_size=SIZE // 4, n_classes=2)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return InpaintPipeline(vae.eval(), unet.eval(), build_scheduler(settings), n_steps=4, margin_cells=(1, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("preview")
    _generator().save_pretrained(root / "painter")
    write_folder(make_phantom(6, size=40, n_groups=3, seed=2), root / "data")
    return Folders(root / "painter", root / "data")


@pytest.fixture(scope="module")
def studio(folders: Folders) -> Studio:
    return open_studio(folders)


def _shows_source(pixels: np.ndarray, labels: np.ndarray, source: np.ndarray) -> bool:
    keep = np.broadcast_to(labels == 1, source.shape)
    return bool(keep.any()) and np.array_equal(pixels[keep], source[keep])


@pytest.mark.parametrize("ask", [ASK, dataclasses.replace(ASK, strength=0.5),
                                 dataclasses.replace(ASK, random_layout=True)])
def test_foreground_is_the_source_and_the_rest_is_painted(studio: Studio, ask: Ask) -> None:
    outcome = paint(studio, studio.pair(studio.ids[1]), ask)
    assert outcome.painted.shape == (2, 1, SIZE, SIZE) and outcome.seeds == (5, 6) and len(outcome.verdicts) == 2
    for pixels in outcome.painted:
        assert _shows_source(pixels, outcome.labels, outcome.source)
        around = (outcome.labels == 0) & ~detect_frame(outcome.source)  # the air round a phantom is kept too
        assert (pixels != outcome.source)[:, around].mean() > 0.5
    assert not np.array_equal(*outcome.painted)


def test_the_frame_of_the_picture_is_kept(studio: Studio) -> None:
    one = studio.pair(studio.ids[1])
    framed = one.images.copy()
    framed[..., :5], framed[..., -5:] = 0, 0
    outcome = paint(studio, dataclasses.replace(one, images=framed), ASK)
    frame = detect_frame(framed[0]) & (outcome.labels == 0)
    assert frame[:, :4].all() and frame.mean() > 0.2
    assert (outcome.painted[:, :, frame] == outcome.source[:, frame]).all()


def test_what_is_shown_follows_the_generators_mode(studio: Studio) -> None:
    one = studio.pair(studio.ids[1])
    for mode in ("object", "layout"):
        generator = studio.generator.with_sampler(SamplerSettings(n_steps=4, mode=mode))
        outcome = paint(dataclasses.replace(studio, generator=generator), one, ASK)
        differs = (outcome.painted != outcome.source).any(1)
        assert differs[:, outcome.labels == 1].mean() > 0.5, "the object itself is painted"
        kept = generator.kept(torch.from_numpy(outcome.labels.astype(np.int64))[None])[0].numpy()
        assert not differs[:, kept].any() and kept.any() == (mode == "object")
        if mode == "object":
            assert all(v.scores["correlation"] < 0.8 for v in outcome.verdicts), "what is kept counts as no memory"


def test_random_layout_moves_the_pair_and_says_how(studio: Studio) -> None:
    one = studio.pair(studio.ids[0])
    moved = paint(studio, one, dataclasses.replace(ASK, random_layout=True))
    assert not np.array_equal(moved.labels, one.masks[0]) and "scaled by" in moved.layout
    still = paint(studio, one, ASK)
    assert np.array_equal(still.source, one.images[0]) and still.layout == ""


def test_seed_decides_and_strength_matters(studio: Studio) -> None:
    one = studio.pair(studio.ids[0])
    first, again = paint(studio, one, ASK), paint(studio, one, ASK)
    assert np.array_equal(first.painted, again.painted) and first.verdicts == again.verdicts
    # Variant 2 is what its own seed gives alone: a person can go back to it. Batches may round differently.
    alone = paint(studio, one, dataclasses.replace(ASK, seed=6, n_variants=1))
    assert np.abs(alone.painted[0].astype(int) - first.painted[1]).max() <= 1
    weaker = paint(studio, one, dataclasses.replace(ASK, strength=0.3))
    outside = one.masks[0] == 0
    assert (weaker.painted != first.painted)[..., outside].mean() > 0.1


def test_callback_counts_up_to_the_end(studio: Studio) -> None:
    calls: list[tuple[int, int]] = []
    outcome = paint(studio, studio.pair(studio.ids[0]), ASK, callback=lambda done, total: calls.append((done, total)))
    assert outcome.n_evaluations == calls[-1][1] == studio.generator.evaluations(ASK.n_steps)
    assert [done for done, _ in calls] == list(range(1, calls[-1][1] + 1)) and {t for _, t in calls} == {calls[0][1]}


def _page(studio: Studio) -> list[object]:
    before = dict(os.environ)
    preview.set_environment()
    try:
        from apps.panels import build_page

        return list(build_page(studio).blocks.values())
    finally:
        os.environ.clear()
        os.environ.update(before)


def _texts(blocks: list[object]) -> str:
    return "\n".join(str(getattr(b, "value", "")) for b in blocks)


def test_a_translator_draws_everything_from_the_mask(folders: Folders, tmp_path: Path) -> None:
    settings = TranslateSettings(model="oasis", size=SIZE, translator={"widths": (8, 8, 16), "hidden": 8, "n_code": 4})
    TranslatePipeline(build_translator(settings, channels=1, n_classes=3).eval(), 3).save_pretrained(tmp_path / "gan")
    studio = open_studio(dataclasses.replace(folders, generator=tmp_path / "gan"))
    calls: list[tuple[int, int]] = []
    one = studio.pair(studio.ids[0])
    outcome = paint(studio, one, ASK, callback=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2, 2) and outcome.n_evaluations == 2 and not np.array_equal(*outcome.painted)
    drawn = studio.generator.sample(torch.zeros(1, 1, SIZE, SIZE), torch.from_numpy(one.masks).long(), seeds=[5],
                                    keep_in=torch.from_numpy(detect_frame(one.images[0]))[None])
    assert np.abs(outcome.painted[0] / 127.5 - 1 - drawn[0].numpy()).max() <= 0.5 / 127.5 + 1e-6
    blocks = _page(studio)
    shown = {b.label: b.visible for b in blocks if getattr(b, "label", None) in ("Strength", "Sampler")}
    assert shown == {"Strength": False, "Sampler": False}
    assert "from the label mask alone" in _texts(blocks)


def test_novelty_is_scored_on_what_is_painted(studio: Studio) -> None:
    generator = studio.generator.with_sampler(SamplerSettings(n_steps=4, mode="object"))
    outcome = paint(dataclasses.replace(studio, generator=generator), studio.pair(studio.ids[1]), ASK)
    unit = torch.from_numpy(outcome.painted / np.float32(127.5)) - 1
    labels = torch.from_numpy(outcome.labels.astype(np.int64)).expand(2, -1, -1)
    _, drawn = run_gates(unit, labels, studio.gates, painted=~generator.kept(labels))
    _, surroundings = run_gates(unit, labels, studio.gates)
    mine = [v.scores["correlation"] for v in outcome.verdicts]
    assert mine == pytest.approx([v.scores["correlation"] for v in drawn], abs=1e-4)
    assert mine != pytest.approx([v.scores["correlation"] for v in surroundings], abs=1e-2)


def test_another_appearance_is_judged_and_described_as_such(folders: Folders, tmp_path: Path) -> None:
    settings = {"kind": "spectral", "size": SIZE, "operation": {"strength": [0.0, 0.05]}}
    synth.fit(settings, synth.load_pairs(folders.data), out=tmp_path / "spectral")
    studio = open_studio(dataclasses.replace(folders, generator=tmp_path / "spectral"))
    one = studio.pair(studio.ids[0])
    outcome = paint(studio, one, dataclasses.replace(ASK, random_layout=True))
    assert all(v.kept and v.scores["correlation"] > studio.gates.max_correlation for v in outcome.verdicts)
    assert any(np.array_equal(outcome.labels, m) for m in (one.masks[0], one.masks[0][:, ::-1])), "only mirrored"
    shown = _texts(_page(studio))
    assert "in another appearance" in shown and "is noted and not judged" in shown
    assert "from the label mask alone" not in shown and "rejected as a copy" not in shown


@pytest.mark.parametrize(("texture", "words"), [("source", "inside the outline every pixel is kept"),
                                                ("codec", "sent through the autoencoder"),
                                                ("redrawn", "draws the whole image once more")])
def test_what_is_kept_is_said_by_texture(studio: Studio, texture: str, words: str) -> None:
    generator = studio.generator.with_sampler(SamplerSettings(n_steps=4, texture=texture))
    shown = _texts(_page(dataclasses.replace(studio, generator=generator)))
    assert words in shown and "from the label mask alone" not in shown


def test_page_shows_the_kept_pixels_exactly(studio: Studio) -> None:
    from apps.panels import FROM_SET, Page

    asked = (FROM_SET, studio.ids[2], None, None, "", 5, 1.0, 4, 3, False, False)
    source, mask, gallery, rows, summary, outcome = Page(studio).paint(*asked)
    k = source.shape[0] // SIZE
    keep = (outcome.labels == 1).repeat(k, 0).repeat(k, 1)
    assert np.array_equal(source[::k, ::k, 0], outcome.source[0])  # the phantom's range is 0..255: shown as it is
    assert not np.array_equal(mask, source) and len(gallery["value"]) == len(rows) == 3
    for image, _ in gallery["value"]:
        assert np.array_equal(image[keep], source[keep]) and not np.array_equal(image, source)
    kept = sum(v.kept for v in outcome.verdicts)
    assert [row[0] for row in rows] == ["5", "6", "7"] and f"{kept} of 3 kept" in summary
    assert f"{studio.generator.evaluations(4)} network evaluations" in summary
    for row, verdict in zip(rows, outcome.verdicts, strict=True):
        assert row[2] == f"{verdict.scores['correlation']:.3f}"
        assert ("kept" in row[1]) == verdict.kept and (verdict.kept or row[-1] == verdict.reason)


def _write(folder: Path, image: np.ndarray, mask: np.ndarray) -> tuple[str, str]:
    paths = folder / "own.png", folder / "own_mask.png"
    for path, pixels in zip(paths, (image, mask), strict=True):
        Image.fromarray(pixels).save(path)
    return str(paths[0]), str(paths[1])


def _grey(side: int = 48) -> np.ndarray:
    return np.arange(side * side, dtype=np.uint16).reshape(side, side).astype(np.uint8)


def _disc(value: int = 1, side: int = 48) -> np.ndarray:
    y, x = np.indices((side, side)) - side // 2
    return ((x * x + y * y < 100) * value).astype(np.uint8)


def test_own_pair_is_painted(studio: Studio, tmp_path: Path) -> None:
    one = read_upload(*_write(tmp_path, _grey(), _disc(255)), " 0:0,255:1 ", studio)
    assert one.images.shape == (1, 1, SIZE, SIZE) and set(np.unique(one.masks)) == {0, 1}
    outcome = paint(studio, one, ASK)
    assert _shows_source(outcome.painted[1], outcome.labels, one.images[0])


@pytest.mark.parametrize("pixels, labels, rule", [
    (_grey(), _disc(255), "its values are 0 and 255"),
    (_grey(), _disc(7), r"mask values \[7\] are outside the classes"),
    (_grey(), _disc(side=40), "the image is 48x48 but its mask is 40x40"),
    (_grey(), _disc(0), "no foreground"),
    (np.stack([_grey()] * 3, -1), _disc(), "3 channel"),
    (np.stack([_grey()] * 4, -1), _disc(), "alpha channel"),
    (_grey().astype(np.uint16) * 200, _disc(), "uint16"),
], ids=["0 and 255", "class", "size", "empty", "colour", "alpha", "16 bit"])
def test_wrong_upload_names_the_rule(studio: Studio, tmp_path: Path, pixels: np.ndarray, labels: np.ndarray,
                                     rule: str) -> None:
    from apps.panels import OWN, Page, gr

    image, mask = _write(tmp_path, pixels, labels)
    with pytest.raises(gr.Error, match=rule) as seen:
        Page(studio).paint(OWN, None, image, mask, "", 0, 1.0, 4, 1, False, False)
    assert "Repair:" in seen.value.message and str(tmp_path) not in seen.value.message
    with pytest.raises(gr.Error, match=rule):
        Page(studio).show_pair(OWN, None, image, mask, "")


def test_damaged_upload_and_html_in_its_name(studio: Studio, tmp_path: Path) -> None:
    from apps.panels import OWN, Page, gr

    image, mask = _write(tmp_path, _grey(), _disc())
    broken = tmp_path / "<img src=x>.png"
    broken.write_bytes(Path(image).read_bytes()[:100])
    with pytest.raises(gr.Error, match="truncated or damaged") as seen:
        Page(studio).paint(OWN, None, str(broken), mask, "", 0, 1.0, 4, 1, False, False)
    assert "<img" not in seen.value.message and "&lt;img" in seen.value.message
    with pytest.raises(gr.Error, match="needs an image and a mask"):
        Page(studio).paint(OWN, None, image, None, "", 0, 1.0, 4, 1, False, False)


def test_parts_that_do_not_fit_are_refused(folders: Folders, tmp_path: Path) -> None:
    write_folder(make_phantom(4, size=32, n_groups=2, bit_depth=16), tmp_path / "deep")
    with pytest.raises(UserError, match="intensity range"):
        open_studio(dataclasses.replace(folders, data=tmp_path / "deep"))
    with pytest.raises(UserError, match="no finished generator"):
        open_studio(dataclasses.replace(folders, generator=tmp_path))


@pytest.fixture(scope="module")
def served(studio: Studio) -> Iterator[int]:
    """Serves the page; returns its port."""
    before = dict(os.environ)
    private = preview.set_environment()
    from apps.panels import build_page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(studio)
    try:
        assert preview.serve(page, port=port, block=False) == f"http://127.0.0.1:{port}/"
        assert page.server_name == "127.0.0.1" and page.share_url is None and not page.allowed_paths
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        yield port
    finally:
        page.close()
        os.environ.clear()
        os.environ.update(before)


def _ask(port: int, path: str, *, method: str = "GET", body: bytes | None = None,
         headers: dict[str, str] | None = None) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace"), answer.headers


def test_page_is_served_to_this_computer_alone(served: int) -> None:
    status, _, headers = _ask(served, "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy  # the browser asks no other server
    config = json.loads(_ask(served, "/config")[1])
    assert config["analytics_enabled"] is False and not config.get("share_url") and config["title"]
    assert "gradio.live" not in json.dumps(config) and "googleapis" not in json.dumps(config)
    assert "googleapis" not in _ask(served, "/theme.css")[1]
    assert _ask(served, "/", headers={"Host": "evil.example"})[0] == 400
    with socket.socket() as probe:  # 127.0.0.2 is this computer too, but not the address that was bound
        assert probe.connect_ex(("127.0.0.2", served)) != 0


def test_files_of_this_computer_are_not_served(served: int, folders: Folders) -> None:
    inside = next((folders.data / "images").iterdir())
    for path in (inside, Path("/etc/hosts"), Path(__file__)):
        assert _ask(served, f"/gradio_api/file={path}")[0] in (403, 404)
    assert _ask(served, "/monitoring")[0] >= 400 and _ask(served, "/docs")[0] >= 400


def _upload(port: int, name: str, data: bytes, **headers: str) -> tuple[int, str]:
    head = (f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n").encode()
    status, text, _ = _ask(port, "/gradio_api/upload", method="POST", body=head + data + b"\r\n--b--\r\n",
                           headers={"Content-Type": "multipart/form-data; boundary=b", **headers})
    return status, text


def test_other_sites_cannot_post_into_the_page(served: int) -> None:
    for strange in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
                    {"Origin": f"http://127.0.0.1:{served + 1}"}):
        assert _upload(served, "x.png", b"x", **strange)[0] == 403
    own = {"Origin": f"http://127.0.0.1:{served}", "Sec-Fetch-Site": "same-origin"}
    assert _upload(served, "x.png", b"x", **own)[0] == 200
    assert _ask(served, "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200, "a link from elsewhere may open it"


def test_a_generator_of_native_windows_is_not_shown_whole_images(folders: Folders, tmp_path: Path) -> None:
    painter = _generator()
    painter.register_to_config(scale="native")
    painter.save_pretrained(tmp_path / "native")
    with pytest.raises(UserError, match="scale=native"):
        open_studio(dataclasses.replace(folders, generator=tmp_path / "native"))


def test_upload_size_is_limited(served: int) -> None:
    assert _upload(served, "small.png", b"x" * 1000)[0] == 200
    assert _upload(served, "large.png", b"x" * (21 * 2**20))[0] == 413


def _press(port: int, name: str, data: list) -> dict:
    """Returns the final message of the event whose function is `name`, asked for as a browser does."""
    fns = json.loads(_ask(port, "/config")[1])["dependencies"]
    index = next(f["id"] for f in fns if f["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": index, "session_hash": "test"}).encode()
    status, text, _ = _ask(port, "/gradio_api/queue/join", method="POST", body=body,
                           headers={"Content-Type": "application/json"})
    assert status == 200, text
    events = _ask(port, "/gradio_api/queue/data?session_hash=test")[1].splitlines()
    messages = [json.loads(line[5:]) for line in events if line.startswith("data:")]
    return next(m for m in messages if m["msg"] == "process_completed")


def test_paint_through_the_server(served: int, studio: Studio) -> None:
    from apps.panels import FROM_SET

    done = _press(served, "paint", [FROM_SET, studio.ids[0], None, None, "", 5, 1.0, 4, 2, False, False])
    assert done["success"], done
    source, _, gallery, table, summary, *_ = done["output"]["data"]
    assert len(gallery["value"]) == len(table["data"]) == 2 and "of 2 kept" in summary
    assert source["path"].endswith(".png")  # lossless: webp, gradio's default, would change kept pixels
    expected = paint(studio, studio.pair(studio.ids[0]), ASK).painted[0, 0]
    shown = np.array(Image.open(gallery["value"][0]["image"]["path"]))
    assert np.array_equal(shown[::16, ::16, 0], expected)
    refused = _press(served, "paint", [FROM_SET, studio.ids[0], None, None, "", 5, 7.0, 4, 2, False, False])
    assert not refused["success"]  # the slider's range holds on the server too


@pytest.mark.parametrize("arguments, rule", [
    (["--data", "x"], "--generator"), (["--generator", "x", "--data", "y", "--port", "0"], "is no port"),
    (["--generator", "x", "--data", "y", "--share"], "--share"),
    (["--generator", "nowhere", "--data", "y"], "no such folder")])
def test_wrong_arguments_are_one_line(arguments: list[str], rule: str) -> None:
    asked = subprocess.run([sys.executable, "-m", "apps.preview", *arguments], capture_output=True, text=True,
                           check=False)
    errors = [line for line in asked.stderr.splitlines() if line.startswith("error:")]
    assert asked.returncode == 2 and len(errors) == 1 and rule in errors[0] and "Traceback" not in asked.stderr


def test_help_is_fast() -> None:
    began = time.monotonic()
    asked = subprocess.run([sys.executable, "-m", "apps.preview", "--help"], capture_output=True, text=True, check=True)
    assert "--generator" in asked.stdout and time.monotonic() - began < 2


def test_taken_port_is_a_users_mistake(served: int, studio: Studio) -> None:
    from apps.panels import build_page

    with pytest.raises(UserError, match="another program listens"):
        preview.serve(build_page(studio), port=served, block=False)
