"""Transports for one host: `unix`, a Unix domain socket, and `shm`, the same with shared memory."""
