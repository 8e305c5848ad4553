"""The KV cache as the engine sees it: who holds which cells, and which prefixes can be reused."""

from themis_engine.kv.manager import Copy, Free, KvManager, Operation, PrefixKey, Reuse, Truncate

__all__ = ["Copy", "Free", "KvManager", "Operation", "PrefixKey", "Reuse", "Truncate"]
