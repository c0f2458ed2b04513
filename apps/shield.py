"""What stands between the page and other sites: checks of the asked host, and a browser policy of no outside requests.

Gradio's own page names fonts, scripts and pictures of other servers. Patients' images are shown here, so the browser
is told to ask nobody but us.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's frontend builds functions and styles at run time, hence the two "unsafe"; all of it comes from 'self'.
POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; form-action 'self'; "
          "frame-ancestors 'none'; base-uri 'self'; object-src 'none'")
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
           "cache-control": "no-store"}


class SameOrigin:
    """An ASGI application that answers nothing but reading to a request that another site's page made.

    A form needs no permission to post a file here: browsers send it, and withhold the answer alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            origin, strange = headers.get("origin"), headers.get("sec-fetch-site") in ("cross-site", "same-site")
            if strange or origin is not None and urlsplit(origin).netloc != headers.get("host"):
                await PlainTextResponse("requests of other sites are refused", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class SafeHeaders:
    """An ASGI application that adds `HEADERS` to every answer of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_safe)


def middleware() -> list[Middleware]:
    """Returns what every request passes: only our own host names are answered (against DNS rebinding), and posts of our
    own page alone; then headers."""
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]), Middleware(SafeHeaders),
            Middleware(SameOrigin)]
