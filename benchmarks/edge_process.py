"""One edge, one core and a wrk run, for the benchmarks of the edge."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import ROOT, Process, Ran, free_port, run_generator
from control_plane.pki import authority
from runtime.identity import Principal
from topology import api_key
from topology.resources import parse
from topology.snapshot import Snapshot
from topology.wire import last_good

EDGE = "tokyo"
REGION = "singapore"
MODEL = "smollm2-135m-instruct"
KEY = "tw-benchmark-key"
PATH = "/v1/chat/completions"
QUESTION = (
    "What is the capital of Singapore, and why is it so warm there all the year long? "
    "Answer in one sentence, please, and name your sources."
)


def question(**extra: Any) -> bytes:
    """A chat request of about 300 bytes."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION},
    ]
    return json.dumps({"model": MODEL, "messages": messages, **extra}).encode()


class Site:
    """Identities, settings and processes under one folder.

    `code`: the checkout that the processes run, when it is not this one; `name` begins the names
    of their logs; `specs`: further resources, by kind and name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cache_ttl_s: float = 3600.0,
        context_tokens: int = 2048,
        code: Path = ROOT,
        name: str = "",
        specs: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    ) -> None:
        self.directory = directory
        self._cache_ttl_s = cache_ttl_s
        self._context_tokens = context_tokens
        self._code = code
        self._name = name
        self._specs = dict(specs or {})
        self.http_port = free_port()
        self.overlay_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}{PATH}"
        authority.create_ca(directory / "ca")

    def start_core(self, module: str = "region_core", **more: Any) -> Process:
        """The real core with the simulated engine; without service time unless `more` says so."""
        settings = self._write("core", {
            "region": REGION,
            "identity": self._identity("core", REGION),
            "overlay": {"host": "127.0.0.1", "port": self.overlay_port},
            "engine": "sim",
            "sim": {"instant": True},
            "model": MODEL,
            **more,
        })  # fmt: skip
        return self._start("core", module, *(["run"] if module == "region_core" else []), settings)

    def start_edge(self, **more: Any) -> Process:
        """One worker, on the snapshot on disk; ready when this returns. `more`: settings."""
        state = self.directory / "state"
        self._save(state / "snapshot-0")
        settings = self._write("edge", {
            "name": EDGE,
            "identity": self._identity("edge", EDGE),
            "state_dir": str(state),
            "port": self.http_port,
            "log_level": "warning",
            **more,
        })  # fmt: skip
        process = self._start("edge", "edge_node", "run", settings)
        process.wait_until(lambda: _status(f"http://127.0.0.1:{self.http_port}/readyz") == 200)
        return process

    def _start(self, role: str, module: str, *words: str | Path) -> Process:
        *verbs, settings = map(str, words)
        command = [sys.executable, "-m", module, *verbs, "--settings", settings]
        env = {"PYTHONPATH": str(self._code)}
        return Process(self._name + role, command, cwd=self._code, env=env)

    def _identity(self, role: str, name: str) -> dict[str, str]:
        folder = self.directory / role / name
        files = authority.issue(self.directory / "ca", Principal(role, name), folder)
        return {part: str(getattr(files, part)) for part in ("certificate", "key", "ca")}

    def _write(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(settings)))
        return path

    def _save(self, path: Path) -> None:
        """By the code that is to read it: another version knows other fields."""
        if self._code == ROOT:
            documents = [parse(document, "benchmark") for document in self._documents()]
            last_good.save(path, Snapshot.build(1, documents))
            return
        subprocess.run(
            [sys.executable, "-c", _SAVE, str(path)],
            input=json.dumps(self._documents()).encode(),
            env=os.environ | {"PYTHONPATH": str(self._code)},
            cwd=self._code,
            check=True,
        )

    def _documents(self) -> list[dict[str, Any]]:
        place = {"city": "x", "latitude": 1.3, "longitude": 103.8, "jurisdiction": "SG"}
        cores = {"cores": [f"127.0.0.1:{self.overlay_port}"], "capacity_tokens_per_s": 1e6}
        specs: dict[tuple[str, str], Mapping[str, Any]] = {
            ("Region", REGION): place | cores,
            ("EdgeSite", EDGE): place | {"addresses": ["127.0.0.1"]},
            ("Model", MODEL): {
                "regions": [REGION],
                "context_tokens": self._context_tokens,
                "cache_ttl_s": self._cache_ttl_s,
            },
            ("Route", "all"): {"models": ["*"], "tenants": ["*"], "regions": [REGION]},
            ("Tenant", "acme"): {"tier": "vip", "api_keys": [api_key.digest(KEY)]},
        }
        all_specs = (specs | self._specs).items()
        return [{"kind": k, "name": n, "spec": spec} for (k, n), spec in all_specs]


_SAVE = """
import json, sys
from pathlib import Path
from topology.resources import parse
from topology.snapshot import Snapshot
from topology.wire import last_good
documents = [parse(document, "benchmark") for document in json.load(sys.stdin)]
last_good.save(Path(sys.argv[1]), Snapshot.build(1, documents))
"""


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            status: int = reply.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def post(url: str, body: bytes) -> tuple[bytes, Mapping[str, str]]:
    """One request; body and headers of the reply, names in lower case."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read(), {name.lower(): value for name, value in reply.headers.items()}


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_s: float
    requests: int
    failures: int
    p50_ms: float
    p99_ms: float
    ran: Ran


_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
wrk.body = [==[{body}]==]
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %.4f %.4f\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""
_RESULT = re.compile(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)")


def wrk(url: str, body: bytes, *, connections: int, seconds: float, script: Path) -> Load:
    """One thread of wrk that sends `body` over and over."""
    script.write_text(_SCRIPT.format(key=KEY, body=body.decode()))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    ran = run_generator([*command, "-s", str(script), url])
    found = _RESULT.search(ran.out)
    assert found is not None, ran.out
    requests, duration_us, failures = (int(found.group(n)) for n in (1, 2, 3))
    per_s = requests / (duration_us / 1e6)
    return Load(per_s, requests, failures, float(found.group(4)), float(found.group(5)), ran)
