"""Transports to other hosts: `grpc`, and `grpcs` with TLS. Other languages are served as well."""

import os

# Read when grpc is imported: it would tell standard error of every goodbye.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
