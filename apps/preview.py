"""The preview page: python -m apps.preview --generator runs/painter --data data/labelled [--judge runs/judge].

The page is served to this computer alone. From another one, forward the port: ssh -L 7860:127.0.0.1:7860 HOST.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from synth.core.checks import UserError
from synth.core.shell import run

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
MAX_FILE_SIZE = "20mb"

log = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like every other mistake of a user's."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the parser's message."""
        raise UserError("python -m apps.preview", rule=message, repair="see --help")


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, ports are 1 to 65535")
    return int(text)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m apps.preview", allow_abbrev=False, description="Paint variants of a pair in the "
                     "browser and see what the gates say. The page is served to this computer alone.")
    parser.add_argument("--generator", type=Path, required=True, metavar="DIR", help="out folder of synth fit")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled pairs, any supported format")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="out folder of segtrain fit; without it only novelty "
                        "is checked")
    parser.add_argument("--unlabelled", type=Path, metavar="DIR", help="further images that the generator was fitted "
                        "on, for the novelty gate")
    parser.add_argument("--mask-map", metavar="MAP", help="class of each mask value, such as 0:0,255:1")
    parser.add_argument("--port", type=_port, default=7860, help="default 7860")
    return parser.parse_args(arguments)


def set_environment() -> Path:
    """Returns a new private folder for uploads and shown images, removed at exit; call it before gradio is imported.

    It also keeps gradio and its hub client from sending anything anywhere.
    """
    private = Path(tempfile.mkdtemp(prefix="pairsmith-preview-"))  # mkdtemp gives it to this user alone
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    os.environ.update(GRADIO_TEMP_DIR=str(private), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1",
                      HF_HUB_OFFLINE="1")
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH"):  # would widen or move what is served
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is up, never through a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    return private


def serve(page: gr.Blocks, *, port: int, block: bool = True) -> str:
    """Returns the address at which `page` is served, to this computer alone; with `block` only after it was closed.

    Raises:
        UserError: if the port is taken.
    """
    from apps.panels import CSS, make_theme
    from apps.shield import middleware

    page.queue(max_size=16, default_concurrency_limit=1)  # the generator's scheduler is no thing to share
    try:
        _, url, _ = page.launch(
            server_name=HOST, server_port=port, share=False, max_file_size=MAX_FILE_SIZE, allowed_paths=[],
            enable_monitoring=False, run_history=False, ssr_mode=False, pwa=False, mcp_server=False, strict_cors=True,
            footer_links=[], state_session_capacity=32, inbrowser=False, quiet=True, prevent_thread_lock=True,
            theme=make_theme(), css=CSS, app_kwargs={"middleware": middleware(), "docs_url": None, "redoc_url": None})
    except OSError:
        raise UserError(f"--port {port}", rule="another program listens there", repair="choose another port") from None
    log.info("Preview at %s - press Ctrl+C to end", url)
    if block:
        page.block_thread()
    return url


def main(arguments: list[str] | None = None) -> None:
    """Loads what the page needs, serves it, and returns when it was ended."""
    args = _parse(arguments)
    for name in ("generator", "data", "judge", "unlabelled"):  # before the slow imports
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{name} {folder}", rule="no such folder", repair="check the path")
    set_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the private folder goes, as after Ctrl+C
    log.info("Loading the generator, the data%s ...", " and the judge" if args.judge else "")
    from apps.panels import build_page
    from apps.studio import Folders, open_studio

    studio = open_studio(Folders(args.generator, args.data, args.judge, args.unlabelled, args.mask_map))
    serve(build_page(studio), port=args.port)


if __name__ == "__main__":
    run(main)
