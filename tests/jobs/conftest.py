"""A server that speaks the OpenAI protocol, as far as a relevance teacher needs it (real HTTP, no model behind it); and
a lake with a KARMA of random weights."""

import datetime as dt
import hashlib
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from embedders.built_chains import built_chain
from embedders.fingerprint import Fingerprint
from embedders.relevance_prompts import QueryItem
from feature_repo import table_schemas as tables
from jobs.lake import Lake

if TYPE_CHECKING:
    from embedders.causal_lm import CausalLM

Fault = Callable[["CompletionServer", dict[str, Any]], tuple[int, dict[str, str], Any]]
"""What the server does instead of answering: status, headers, body."""


class CompletionServer:
    """Judges by rules; how sure it is depends on the pair and on the seed. Told to fail, it fails.

    Attributes:
        url: where it listens.
        model: the one that it has.
        key: what it wants to be shown; None: it asks nobody.
        received: the bytes of each request, head and body.
        requests: the bodies, read.
        arrivals: when each came, on the monotonic clock.
        tokens: of all answers that it counted.
        faults: what happens to the next requests, one each; then all is well.
        change: is shown each good answer, and may alter it.
        seconds: that it takes for an answer.
        most_at_once: requests that were under way together.
    """

    def __init__(self) -> None:
        self.model, self.key = "judge", None
        self.received: list[bytes] = []
        self.requests: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.tokens = self.most_at_once = self._at_once = 0
        self.faults: list[Fault] = []
        self.change: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda request, answer: answer
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(self, times: int, status: int, body: Any = None, **headers: str) -> None:
        """The next requests are answered with this status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        told = {"error": {"message": "told to fail"}} if body is None else body
        self.faults += [lambda server, request: (status, named, told)] * times

    def chance(self, pair: QueryItem, seed: int) -> float:
        """P(good) of a draw."""
        jitter = hashlib.sha256(f"{pair.title} {seed}".encode()).digest()[0] / 1000
        return (0.6 if built_chain(pair).label == "good" else 0.1) + jitter

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """A good answer, as vLLM words it: with an end token, and bytes of tokens."""
        words = request["messages"][0]["content"]
        pair = read_pair(words)
        good = self.chance(pair, request["seed"])
        label = "good" if good > 0.5 else "bad"
        line = built_chain(pair).model_copy(update={"label": label}).line()
        if "label is good or bad" in words:
            line = f'{{"v":1,"label":"{label}"}}'
        tokens = re.findall(r"[^\W\d_]+|.", line)
        kept = tokens[: request["max_tokens"]]
        content = [said(token, {token: -0.1, "~": -3.0}) for token in kept]
        at = len(tokens) - 2 if tokens[-1] == "}" else None
        at = max(number for number, token in enumerate(tokens) if token in ("good", "bad")) if at else None
        if at is not None and at < len(kept):
            content[at] = said(label, {"good": math.log(good), "bad": math.log(1 - good), "~": -9.0})
        prompt_tokens = len(re.findall(r"\w+|\W", words)) + 11
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": self.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "".join(kept)},
                    "logprobs": {"content": [*content, said("<|end|>", {"<|end|>": 0.0})]},
                    "finish_reason": "stop" if kept == tokens else "length",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(kept) + 1,
                "total_tokens": prompt_tokens + len(kept) + 1,
            },
        }

    def _reply(self, path: str, key: str, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if path != "/v1/chat/completions" or request["model"] != self.model:
            return 404, {}, {"error": {"message": f"no {path} of {request['model']} here"}}
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {}, {"error": {"message": f"wrong key: {key}"}}  # some servers do repeat it
        with self._lock:
            fault = self.faults.pop(0) if self.faults else None
        if fault:
            return fault(self, request)
        answer = self.answer(request)
        with self._lock:
            self.tokens += answer["usage"]["total_tokens"]
        return 200, {}, self.change(request, answer)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = json.loads(body)
                with server._lock:
                    server.received.append(f"{self.requestline}\n{self.headers}".encode() + body)
                    server.requests.append(request)
                    server.arrivals.append(time.monotonic())
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                time.sleep(server.seconds)
                status, headers, told = server._reply(self.path, self.headers.get("authorization", ""), request)
                sent = told if isinstance(told, bytes) else json.dumps(told).encode()
                with server._lock:
                    server._at_once -= 1
                try:
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(sent)))
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:
                    self.close_connection = True  # the client did not wait

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def said(token: str, alternatives: dict[str, float]) -> dict[str, Any]:
    """One token of an answer, as the protocol words it."""
    tops = [{"token": text, "logprob": log, "bytes": list(text.encode())} for text, log in alternatives.items()]
    return {
        "token": token,
        "logprob": alternatives.get(token, -0.5),
        "bytes": list(token.encode()),
        "top_logprobs": tops,
    }


def read_pair(words: str) -> QueryItem:
    """The pair that a prompt tells of."""
    lines = dict(line.split(": ", 1) for line in words.splitlines() if ": " in line)
    return QueryItem(
        lines.get("Query", ""),
        lines.get("Title", ""),
        lines.get("Category"),
        lines.get("Brand"),
        lines.get("Attributes"),
    )


@pytest.fixture
def completion_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionServer]:
    """A server on a port of its own, for one test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = CompletionServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def random_karma_lake(
    fitted_lake: Lake, make_lm: "Callable[..., CausalLM]", tmp_path_factory: pytest.TempPathFactory
) -> Lake:
    """`fitted_lake` with titles, pictures and a KARMA of random weights that counts as trained on the first 19 days.

    Read only: copy to change. Image vectors (4 wide): of i00 to i19 from day 0 on; another of i05 from day 27 on
    (vector 100), the first of i30 from day 33 on (30); i43 has a picture and no text.
    """
    from embedders.karma import KarmaNetwork  # torch takes seconds to import
    from embedders.karma_decoder import KarmaDecoder
    from embedders.karma_features import FrozenFeatures
    from embedders.karma_model import KarmaModel
    from embedders.karma_towers import KarmaShape
    from jobs.fitted_embedder import sha256_of_model

    root = tmp_path_factory.mktemp("random_karma") / "lake"
    shutil.copytree(fitted_lake.root, root, symlinks=True)
    lake = Lake(root, now=fitted_lake.now)
    start, day = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc), dt.timedelta(days=1)
    named = pl.DataFrame({"item_id": [f"i{n:02}" for n in range(42)]}).with_columns(
        title=pl.format("{} chair i{}", pl.Series(["red", "blue"] * 21), pl.int_range(42)),
        event_timestamp=pl.lit(start),
        created_timestamp=pl.lit(start),
    )
    lake.write(tables.Items, pl.concat([tables.Items.create_empty(), named], how="diagonal_relaxed"))

    rng = np.random.default_rng(7)
    seen = [(f"i{n:02}", 0, n) for n in range(20)] + [("i05", 27, 100), ("i30", 33, 30), ("i43", 0, 43)]
    drawn = rng.normal(size=(len(seen), 4))
    images = pl.DataFrame(
        {
            "item_id": [item for item, *_ in seen],
            "event_timestamp": [start + known * day for _, known, _ in seen],
            "created_timestamp": [start + known * day for _, known, _ in seen],
            "item_image_vector_id": [number for *_, number in seen],
            "item_image_embedding": (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).tolist(),
            "item_image_hash": [str(number) for *_, number in seen],
        },
        schema_overrides={"item_image_embedding": pl.List(pl.Float32)},
    )
    pictures = Fingerprint("pixels", "p", "none", "none", "mean", 4, "l2", "float32")
    lake.write(tables.ItemImageEmbeddings, images, fingerprint=pictures.as_tags())

    features = FrozenFeatures(np.empty((0, 8), np.float32), np.empty((0, 4), np.float32))
    network = KarmaNetwork(make_lm(), features, KarmaShape(output_dim=12, item_hidden=16))
    model = KarmaModel.of_network(network)
    folder = lake.root / "embedders" / "karma" / "random"
    model.save(folder / "serving")
    KarmaDecoder.of_network(network).save(folder / "decoder")
    content = Fingerprint.from_tags(lake.manifest(tables.ItemContentEmbeddings).fingerprint)
    through = (start + 19 * day).isoformat()
    identity = content.of_karma(pictures, weights_sha256=model.weights_sha256(), dimension=12, trained_through=through)
    told = {
        name: {"folder": f"embedders/karma/random/{name}", "files_sha256": sha256_of_model(folder / name)}
        for name in ("serving", "decoder")
    }
    lake.write(
        tables.KarmaCurves,
        tables.KarmaCurves.create_empty(),
        fingerprint=identity.as_tags(),
        metadata={**told, "uses_images": True},
    )
    return lake


@pytest.fixture
def karma_lake(random_karma_lake: Lake, tmp_path: Path) -> Lake:
    """A copy of `random_karma_lake`, to be changed."""
    shutil.copytree(random_karma_lake.root, tmp_path / "karma_lake", symlinks=True)
    return Lake(tmp_path / "karma_lake", now=random_karma_lake.now)
