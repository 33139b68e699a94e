"""The map and the roads: resources, snapshots, distances, paths, and the overlay.

Pure decisions live here; only `overlay/tunnel.py`, `overlay/server.py` and `wire/ads_client.py`
touch a socket.
"""
