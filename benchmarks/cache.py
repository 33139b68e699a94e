"""A cache hit: our edge, one worker, against nginx's `proxy_cache`, one worker.

    python -m benchmarks.cache [--json FILE] [--runs 5] [--seconds 5]

Both answer the same POST with the same bytes. nginx is configured to cache POSTs under a key
made of the API key and the body (`proxy_cache_methods POST`). Ours also checks the API key,
and keeps the answers of tenants apart. One worker each: nginx's is one thread, ours is Python's
thread and granian's, so ours may use more than one core; "per core" is the comparison that
takes this into account.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.edge_process import PATH, Site, post, question, wrk
from benchmarks.harness import (
    BENCH,
    Process,
    Report,
    Sample,
    arguments,
    ensure_debian,
    free_port,
    say,
    take_turns,
)

CONNECTIONS = (32, 128)
BODY = question(temperature=0)

NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=answers:16m max_size=64m inactive=10m;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    client_max_body_size 2m;
    client_body_buffer_size 2m;
    location / {{
      proxy_pass http://127.0.0.1:{backend};
      proxy_cache answers;
      proxy_cache_methods POST;
      proxy_cache_key "$http_authorization|$request_uri|$request_body";
      proxy_cache_valid 200 10m;
      add_header x-cache $upstream_cache_status;
    }}
  }}
}}
"""


def backend(answer: bytes) -> int:
    """A server that nginx fetches the answer from, once; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def start_nginx(folder: Path, port: int, answer: bytes) -> Process:
    ensure_debian(["nginx"])
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # or it could not write to `folder`
    configuration.write_text(
        NGINX.format(user=user, folder=folder, port=port, backend=backend(answer))
    )
    command = ["/usr/sbin/nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
    process = Process("nginx", command)
    process.wait_for_port(port)
    return process


def main() -> None:
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    ensure_debian(["wrk"])
    with ExitStack() as stack:
        BENCH.mkdir(exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="cache-", dir=BENCH)
        folder = Path(stack.enter_context(temporary))
        site = Site(folder)
        with site.start_core():
            edge = stack.enter_context(site.start_edge())
            answer = prove_ours(site.url)
        port = free_port()
        nginx = stack.enter_context(start_nginx(folder / "nginx", port, answer))
        nginx_url = f"http://127.0.0.1:{port}{PATH}"
        prove_nginx(nginx_url, answer)
        report = Report("cache", unit="req/s")
        for connections in CONNECTIONS:

            def turn(process: Process, url: str, count: int = connections) -> Sample:
                before = process.cpu_s()
                load = wrk(
                    url, BODY, connections=count, seconds=options.seconds,
                    script=folder / "wrk.lua",
                )  # fmt: skip
                assert load.failures == 0, f"{process.name}: {load.failures} failures"
                used_s = process.cpu_s() - before
                notes = {
                    "p50_ms": load.p50_ms,
                    "p99_ms": load.p99_ms,
                    "cpu_us": used_s / load.requests * 1e6,
                    "rss_mib": process.rss_mib(),
                }
                say(f"    {process.name}: " + ", ".join(f"{k} {v:.2f}" for k, v in notes.items()))
                return Sample(
                    load.per_s,
                    server_cores=used_s / load.ran.wall_s,
                    server_limit=2.0 if process is edge else 1.0,
                    generator_cores=load.ran.cores,
                    notes=notes,
                )

            sides = {
                "ours": lambda: turn(edge, site.url),
                "nginx": lambda: turn(nginx, nginx_url),
            }
            report.add(f"{connections} connections", take_turns(sides, options.runs))
        report.finish(options.json)


def prove_ours(url: str) -> bytes:
    """Ask until the answer comes from the cache, byte for byte the one that the region gave."""
    first, headers = post(url, BODY)
    assert headers["x-tradewind-served-by"] == "region", headers
    for _ in range(3):
        again, headers = post(url, BODY)
        assert again == first and headers["x-tradewind-served-by"] == "cache", headers
    return first


def prove_nginx(url: str, answer: bytes) -> None:
    for expected in ("MISS", "HIT"):
        found, headers = post(url, BODY)
        assert found == answer and headers["x-cache"] == expected, headers


if __name__ == "__main__":
    main()
