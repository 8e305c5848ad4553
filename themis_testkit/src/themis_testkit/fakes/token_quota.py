"""`TokenQuota`: tokens per minute and requests at once, for each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from themis_core.errors import QuotaExceeded
from themis_core.messages import GenerateRequest, Usage

_BYTES_PER_TOKEN = 4  # A rough estimate, replaced by the truth when the request is settled.


@dataclass
class _Account:
    """`tokens` may be below 0: a request that used more than was reserved leaves a debt."""

    tokens: float
    refilled: float
    running: int = 0


class TokenQuota:
    """A token bucket of `tokens_per_minute` for each tenant, and at most `concurrency` requests.

    Either limit may be None. A request reserves its prompt, estimated, and its `max_tokens`
    (`unbounded` where it names none); settling puts the usage in the place of the estimate. The
    bucket refills evenly and never beyond a minute's worth. `clock` gives seconds.
    """

    def __init__(
        self,
        tokens_per_minute: int | None = None,
        concurrency: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        unbounded: int = 256,
    ) -> None:
        self._rate = tokens_per_minute
        self._concurrency = concurrency
        self._clock = clock
        self._unbounded = unbounded
        self._accounts: dict[str | None, _Account] = {}

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        """Raises `QuotaExceeded`, having reserved nothing, and names the limit."""
        account = self._account(request.tenant)
        estimate = self.estimate(request)
        if self._concurrency is not None and account.running >= self._concurrency:
            raise QuotaExceeded(
                f"All {self._concurrency} requests at once are running.",
                field="tenant",
                remedy="Wait until one has finished.",
                plugin="token_quota",
            )
        if self._rate is not None and estimate > account.tokens:
            raise QuotaExceeded(
                f"The request may use {estimate} tokens, and {max(0, int(account.tokens))} of "
                f"{self._rate} a minute are left.",
                field="tenant",
                remedy="Wait, or ask for fewer tokens.",
                plugin="token_quota",
            )
        account.running += 1
        account.tokens -= estimate
        return TokenReservation(self, request.tenant, estimate)

    def estimate(self, request: GenerateRequest) -> int:
        """The tokens that are reserved for a request."""
        if isinstance(request.prompt, tuple):
            prompt = len(request.prompt)
        else:
            texts = [request.prompt or "", *(str(m.content) for m in request.messages)]
            prompt = -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)
        answer = request.sampling.max_tokens or self._unbounded
        return prompt + answer * request.sampling.n

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        """Give an estimate back and take what was used instead."""
        account = self._account(tenant)
        account.running -= 1
        account.tokens += estimate - used
        if self._rate is not None:
            account.tokens = min(account.tokens, float(self._rate))

    async def aclose(self) -> None:
        """Forget all accounts."""
        self._accounts.clear()

    def _account(self, tenant: str | None) -> _Account:
        now = self._clock()
        full = float(self._rate or 0)
        account = self._accounts.setdefault(tenant, _Account(full, now))
        gained = (now - account.refilled) * full / 60
        account.tokens = min(full, account.tokens + gained) if self._rate else 0.0
        account.refilled = now
        return account


class TokenReservation:
    """What one request has reserved."""

    def __init__(self, quota: TokenQuota, tenant: str | None, estimate: int) -> None:
        self._quota = quota
        self._tenant = tenant
        self._estimate = estimate

    async def settle(self, usage: Usage) -> None:
        """The request used so much. It does not wait, so it cannot be cut in half."""
        self._quota.end(self._tenant, self._estimate, usage.total_tokens)

    async def release(self) -> None:
        """The request used nothing. It does not wait, so it cannot be cut in half."""
        self._quota.end(self._tenant, self._estimate, 0)
