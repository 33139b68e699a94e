"""Other people's proxies in front of our cores: they start, stream, and are set as docs say.

Envoy always (its wheel is among our requirements); the others where they are installed under
`.bench/`, which the storm and benchmarks do when they are first asked to.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from control_plane.pki import create_ca, issue
from lab.storm.peers import PEERS, Cores, Running, litellm, programs, start
from lab.storm.peers.base import answers, free_port
from lab.storm.peers.envoy import bootstrap
from lab.supervisor import Supervisor, dying_with_parent
from runtime.identity import Principal

MODEL = "smollm2-135m-instruct"
VIP = "a-key-of-a-vip"
NAMES = [
    pytest.param(
        name,
        marks=[] if peer.here else pytest.mark.skip(reason=f"{name} is not installed in .bench/"),
    )
    for name, peer in PEERS.items()
]


def cores_at(*addresses: str) -> Cores:
    return Cores(
        addresses=addresses,
        model=MODEL,
        slots=16,
        answer_s=1.5,
        capacity_rps=20.0,
        deadline_s=10.0,
        vip_keys=(VIP,),
    )


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cores]:
    """Two cores with the instant simulated engine."""
    folder = tmp_path_factory.mktemp("cores")
    create_ca(folder / "pki")
    ports = [free_port() for _ in range(2)]
    processes = [_core(folder, number, port) for number, port in enumerate(ports)]
    try:
        for port, process in zip(ports, processes, strict=True):
            while not answers(port, MODEL, VIP):
                assert process.poll() is None, "a core ended"
                threading.Event().wait(0.05)
        yield cores_at(*(f"127.0.0.1:{port}" for port in ports))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _core(folder: Path, number: int, port: int) -> subprocess.Popen[bytes]:
    name = f"c{number}"
    identity = issue(folder / "pki", Principal("core", name), folder / name, hosts=("127.0.0.1",))
    document = {
        "region": name,
        "identity": {part: str(getattr(identity, part)) for part in ("certificate", "key", "ca")},
        "overlay": {"host": "127.0.0.1", "port": 0},
        "http": {"host": "127.0.0.1", "port": port},
        "engine": "sim",
        "sim": {"prefill_tokens_per_s": 1e6, "step_ms": 1.0, "step_ms_per_sequence": 0.0},
        "log_level": "warning",
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "region_core", "run", "--settings", str(file)]
    return subprocess.Popen(dying_with_parent(command))


async def ask(running: Running, key: str, words: str) -> tuple[str, list[str]]:
    """The same question twice: the whole answer, and the pieces of the streamed one."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": words}]
    async with AsyncOpenAI(
        base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=20
    ) as client:
        whole = await client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=24
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=24, stream=True
        )
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
    return whole.choices[0].message.content or "", [piece for piece in pieces if piece]


@pytest.mark.parametrize("name", NAMES)
async def test_whole_and_streamed_answers_pass(name: str, cores: Cores, tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    try:
        running = await start(PEERS[name], cores, supervisor, tmp_path)
        assert running.settings
        for key in (VIP, "a-key-of-somebody"):
            whole, pieces = await ask(running, key, "What does the wind do?")
            assert whole == "".join(pieces)
            assert whole.startswith("sim:")
            assert len(pieces) > 3, "the answer came in one piece"
    finally:
        await supervisor.stop()


async def test_envoy_goes_round_a_core_that_is_not_there(cores: Cores, tmp_path: Path) -> None:
    gone = f"127.0.0.1:{free_port()}"
    supervisor = Supervisor(tmp_path)
    try:
        three = cores_at(*cores.addresses, gone)
        running = await start(PEERS["envoy"], three, supervisor, tmp_path)
        port = int(running.url.rpartition(":")[2])
        found = [answers(port, MODEL, key) for key in (VIP, "another") * 10]
        assert all(found)
    finally:
        await supervisor.stop()


def test_envoy_takes_its_configuration(tmp_path: Path) -> None:
    """With every check that Envoy makes of a file, in both shapes that it takes."""
    for number, addresses in enumerate([("127.0.0.1:1",), ("127.0.0.1:1", "127.0.0.2:2")]):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(bootstrap(cores_at(*addresses), free_port(), free_port())))
        envoy = str(files("envoy._bin") / "envoy")
        done = subprocess.run(
            [envoy, "--mode", "validate", "--config-path", str(file), "--log-level", "error"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_envoy_spares_the_keys_of_vips() -> None:
    document = bootstrap(cores_at("127.0.0.1:1"), 1, 2)
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    vip, rest = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert vip["match"]["headers"][0]["string_match"] == {"exact": f"Bearer {VIP}"}
    assert vip["route"]["priority"] == "HIGH"
    shedding = [each["name"] for each in manager["http_filters"][:-1]]
    assert set(vip["typed_per_filter_config"]) == set(shedding)
    assert "typed_per_filter_config" not in rest
    assert "priority" not in rest["route"]


def test_litellm_has_a_deployment_for_each_core() -> None:
    found = litellm.config(cores_at("127.0.0.1:1", "127.0.0.2:2"))
    bases = [each["litellm_params"]["api_base"] for each in found["model_list"]]
    assert bases == ["http://127.0.0.1:1/v1", "http://127.0.0.2:2/v1"]


def test_sizes_follow_what_the_cores_can_do() -> None:
    small = cores_at("127.0.0.1:1")
    assert small.in_time == 100  # 20 a second for half of ten seconds
    assert (
        Cores(
            addresses=("127.0.0.1:1",),
            model=MODEL,
            slots=64,
            answer_s=1,
            capacity_rps=1,
            deadline_s=2,
        ).in_time
        == 71
    )  # never fewer than keep it busy


def test_what_is_not_installed_is_told_apart(tmp_path: Path) -> None:
    assert programs.installed("nothing", ("a==1",), tmp_path) is None
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / ".packages").write_text("a==1")
    assert programs.installed("nothing", ("a==1",), tmp_path) == tmp_path / "nothing" / "bin"
    assert programs.installed("nothing", ("a==2",), tmp_path) is None


def test_an_installation_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(programs, "INSTALL_LIMIT_S", 0.2)
    with pytest.raises(programs.PeerUnavailable, match=r"took more than 0.2 s"):
        programs.install("x", ("a==1",), tmp_path / "bench")


def test_a_peer_that_cannot_be_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(programs.PeerUnavailable, match=r"x: /bin/false -m venv .* failed"):
        programs.install("x", ("a==1",), tmp_path)
