"""Other people's proxies as nodes: Envoy and proxyless gRPC, served from the same snapshot."""
