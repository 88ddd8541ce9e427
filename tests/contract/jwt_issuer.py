"""An issuer of tokens for tests: real keys, real signatures, and every way to get a token wrong."""

import json
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from chatgrpc.adapters.jwt.keys import JwtRegistry

ISSUER = "https://issuer.example"
AUDIENCE = "chat"
NOW_S = 1_800_000_000
NOW_MS = NOW_S * 1000

ALGORITHMS = ("EdDSA", "ES256", "RS256")


def new_key(algorithm: str, kid: str) -> Key:
    """A fresh private key for the algorithm."""
    if algorithm == "EdDSA":
        return OKPKey.generate_key("Ed25519", {"kid": kid})
    if algorithm == "ES256":
        return ECKey.generate_key("P-256", {"kid": kid})
    return RSAKey.generate_key(2048, {"kid": kid})


def claims(**changes: Any) -> dict[str, Any]:
    """Valid claims of alice, with changes; None leaves a claim out."""
    valid = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 600}
    return {name: value for name, value in (valid | changes).items() if value is not None}


def sign(key: Key, algorithm: str, payload: dict[str, Any] | bytes, **header: Any) -> str:
    """A token signed by `key`; `header` changes the header, None leaves a member out."""
    full = {"typ": "JWT", "alg": algorithm, "kid": key.kid} | header
    protected = {name: value for name, value in full.items() if value is not None}
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jws.serialize_compact(protected, body, key, registry=JwtRegistry())


def compose(header: object, payload: object, signature: bytes = b"x" * 64) -> str:
    """A token of any parts, signed by nobody."""
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def jwks(*keys: Key) -> bytes:
    """The JWK set an issuer publishes: public parts."""
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class IssuerServer:
    """An HTTP server on loopback that hands out a JWK set, counts requests, and can fail or keep callers waiting."""

    def __init__(self) -> None:
        self.document = b'{"keys": []}'
        self.status = 200
        self.headers: dict[str, str] = {}
        self.requests = 0
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.arrived = threading.Semaphore(0)
        self.url = ""


@contextmanager
def issuer_server() -> Iterator[tuple[IssuerServer, Callable[[], None]]]:
    """Runs an `IssuerServer`; the second value takes it down early."""
    state = IssuerServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            state.arrived.release()
            state.open_gate.wait()
            self.send_response(state.status)
            for name, value in {"content-length": str(len(state.document)), **state.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(state.document)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        if thread.is_alive():
            server.shutdown()
            thread.join()
            state.open_gate.set()
            server.server_close()

    try:
        yield state, stop
    finally:
        stop()
