"""What vllm-router and sglang-router ask of a back end when they start."""

from __future__ import annotations

from benchmarks.edge_process import MODEL

MODELS = b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % MODEL.encode()
INFO = b'{"model_path":"%s","is_generation":true,"tokenizer_path":""}' % MODEL.encode()
PAGES = {
    "/health": b"{}",
    "/health_generate": b"{}",
    "/v1/models": MODELS,
    "/get_model_info": INFO,
    "/model_info": INFO,
    "/get_server_info": INFO,
    "/server_info": INFO,
}
