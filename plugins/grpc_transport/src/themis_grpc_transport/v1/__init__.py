"""The Protobuf messages and services, generated from `themis.proto` by `generate.py`."""
