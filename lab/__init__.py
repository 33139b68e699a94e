"""The whole world on one machine: real etcd, control plane, DNS, edges, cores and clients.

Everything runs on loopback addresses; only distance is pretended, by the WAN emulator.
"""
