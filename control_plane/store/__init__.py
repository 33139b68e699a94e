"""Where decisions are kept: revisions, transactions guarded by revisions, and a watch.

`base` is the interface. `memory` serves tests and a control plane without etcd; `etcd` is the
real one. One conformance suite (`tests/store`) runs over both.
"""
