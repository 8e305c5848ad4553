"""Step 1, route: from the name in a request to a configured model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from themis_core.errors import ModelNotFound
from themis_core.messages import GenerateRequest
from themis_core.suggest import did_you_mean


class Router:
    """Resolves model names and aliases; an empty name means the default model."""

    def __init__(self, models: Sequence[str], aliases: Mapping[str, str], default: str) -> None:
        self._targets = {name: name for name in models} | dict(aliases)
        self._default = default

    def route(self, name: str) -> str:
        """The model that serves this name. Raises `ModelNotFound`, naming what there is."""
        target = self._targets.get(name or self._default)
        if target is None:
            known = ", ".join(sorted(self._targets)) or "none"
            raise ModelNotFound(
                f"No model is called {name!r}.",
                field="model",
                remedy=did_you_mean(name, self._targets) or f"Known models: {known}.",
            )
        return target

    def apply(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the configured name of its model: aliases have no quotas of their own.

        Raises `ModelNotFound`.
        """
        model = self.route(request.model)
        if model == request.model:
            return request
        return msgspec.structs.replace(request, model=model)
