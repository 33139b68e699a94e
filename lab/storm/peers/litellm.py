"""LiteLLM's proxy: one deployment per core, its router in between."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import yaml

from lab.storm.peers.base import HOST, Cores, Launch
from lab.storm.peers.programs import install, installed

_WORKERS = 2
_RETRIES = 2
_COOLDOWN_S = 5


class LiteLLM:
    """litellm[proxy] 1.106.0."""

    name = "litellm"
    packages = ("litellm[proxy]==1.106.0",)

    @property
    def here(self) -> bool:
        return installed(self.name, self.packages) is not None

    def launch(self, cores: Cores, port: int, folder: Path) -> Launch:
        programs = install(self.name, self.packages)
        file = folder / "litellm.yaml"
        file.write_text(yaml.safe_dump(config(cores)))
        command = (
            *(str(programs / "litellm"), "--config", str(file)),
            *("--host", HOST, "--port", str(port), "--num_workers", str(_WORKERS)),
        )
        environment = {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it asks the Internet for prices otherwise
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_TELEMETRY": "False",
            # Keys of its own need a database; here anybody on loopback may ask.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        settings = (
            f"{_WORKERS} workers; least-busy; {_parallel(cores)} in flight per core and worker; "
            f"{_RETRIES} retries; a core cools down for {_COOLDOWN_S} s after 10 failures a minute"
        )
        return Launch(command=command, environment=environment, settings=settings)


def _parallel(cores: Cores) -> int:
    """In flight to one core from one worker; more wait in the worker."""
    return max(1, ceil(cores.busy / len(cores.addresses) / _WORKERS))


def config(cores: Cores) -> dict[str, Any]:
    """The proxy's config.yaml."""
    deployments = [
        {
            "model_name": cores.model,
            "litellm_params": {
                "model": f"openai/{cores.model}",
                "api_base": f"http://{address}/v1",
                "api_key": "none",
                "max_parallel_requests": _parallel(cores),
                "max_retries": 0,  # the router's are enough
                "extra_headers": {"x-request-timeout-ms": str(round(1000 * cores.deadline_s))},
            },
        }
        for address in cores.addresses
    ]
    return {
        "model_list": deployments,
        "router_settings": {
            "routing_strategy": "least-busy",
            "num_retries": _RETRIES,
            "retry_after": 0,
            "timeout": cores.deadline_s,
            "allowed_fails": 10,
            "cooldown_time": _COOLDOWN_S,
        },
        "litellm_settings": {
            "request_timeout": cores.deadline_s,
            "drop_params": True,
            "set_verbose": False,
            "telemetry": False,
        },
        "general_settings": {
            "global_max_parallel_requests": cores.in_time,
            "disable_spend_logs": True,
            "disable_error_logs": True,
        },
    }
