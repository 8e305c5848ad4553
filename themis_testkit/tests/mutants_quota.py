"""`TokenQuota`, with one fault each."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from themis_core.errors import QuotaExceeded, RequestRejected
from themis_core.messages import GenerateRequest, Usage
from themis_testkit import TokenQuota, VirtualClock
from themis_testkit.fakes.token_quota import TokenReservation


class Quota(TokenQuota):
    """600 tokens a minute, 4 at once: without a fault."""

    def __init__(self, clock: VirtualClock, concurrency: int = 4, tokens: int = 600) -> None:
        super().__init__(tokens, concurrency, clock=clock)


class DoubleRelease(Quota):
    """release gives back twice"""

    async def reserve(self, request: GenerateRequest) -> Any:
        quota = self

        class Twice(TokenReservation):
            async def release(self) -> None:
                await super().release()
                account = quota._account(self._tenant)
                account.running = max(0, account.running - 1)

        return Twice(self, request.tenant, (await super().reserve(request))._estimate)


class ReleaseForgets(Quota):
    """release gives back the place, and not the tokens"""

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        super().end(tenant, estimate, used or estimate)


class ReleaseDoesNothing(Quota):
    """release gives nothing back"""

    async def reserve(self, request: GenerateRequest) -> Any:
        class Held(TokenReservation):
            async def release(self) -> None:
                return None

        return Held(self, request.tenant, (await super().reserve(request))._estimate)


class SettleKeepsPlace(Quota):
    """settle does not free the place"""

    async def reserve(self, request: GenerateRequest) -> Any:
        quota = self

        class Keeps(TokenReservation):
            async def settle(self, usage: Usage) -> None:
                await super().settle(usage)
                quota._account(self._tenant).running += 1

        return Keeps(self, request.tenant, (await super().reserve(request))._estimate)


class RefusalHolds(Quota):
    """a refused request keeps a place"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        try:
            return await super().reserve(request)
        except QuotaExceeded:
            self._account(request.tenant).running += 1
            raise


class CancelledHolds(Quota):
    """a cancelled reserve keeps its place"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        reservation = await super().reserve(request)
        await asyncio.sleep(0)
        return reservation


class Race(Quota):
    """the limit is looked at before a wait, and the place is taken after it"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        account = self._account(request.tenant)
        if account.running >= 4:
            raise QuotaExceeded("It is full.")
        await asyncio.sleep(0)
        account.running -= 10
        try:
            return await super().reserve(request)
        finally:
            account.running += 10


class EstimateStays(Quota):
    """settle keeps the estimate where less was used"""

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        super().end(tenant, estimate, max(used, estimate) if used else 0)


class OveruseIsFree(Quota):
    """settle counts no more than the estimate"""

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        super().end(tenant, estimate, min(used, estimate))


class PromptsAreFree(Quota):
    """settle counts the completion alone"""

    async def reserve(self, request: GenerateRequest) -> Any:
        class Free(TokenReservation):
            async def settle(self, usage: Usage) -> None:
                await super().settle(Usage(completion_tokens=usage.completion_tokens))

        return Free(self, request.tenant, (await super().reserve(request))._estimate)


class OneForAll(Quota):
    """all tenants share one account"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        return await super().reserve(msgspec.structs.replace(request, tenant="all"))


class CaseBlindTenants(Quota):
    """tenants are compared without regard to case"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        tenant = (request.tenant or "").lower()
        return await super().reserve(msgspec.structs.replace(request, tenant=tenant))


class OneMore(Quota):
    """one request more than declared may run"""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, concurrency=5)


class OneLess(Quota):
    """one request less than declared may run"""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, concurrency=3)


class Overflows(Quota):
    """an account that is not used gathers more than its limit"""

    def _account(self, tenant: str | None) -> Any:
        now = self._clock()
        account = self._accounts.get(tenant)
        gained = 0.0 if account is None else (now - account.refilled) * 10
        before = 600.0 if account is None else account.tokens
        account = super()._account(tenant)
        account.tokens = before + gained
        return account

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        account = self._account(tenant)
        account.running -= 1
        account.tokens += estimate - used


class NeverRefills(Quota):
    """used tokens never come back"""

    def _account(self, tenant: str | None) -> Any:
        before = self._accounts[tenant].tokens if tenant in self._accounts else 600.0
        account = super()._account(tenant)
        account.tokens = before
        return account


class WrongError(Quota):
    """it refuses with another error"""

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        try:
            return await super().reserve(request)
        except QuotaExceeded as error:
            raise RequestRejected(error.message) from error


class SharedReservation(Quota):
    """a tenant's requests get one and the same reservation"""

    last: TokenReservation | None = None

    async def reserve(self, request: GenerateRequest) -> TokenReservation:
        reservation = await super().reserve(request)
        self.last = self.last or reservation
        return self.last


class CancelledReleaseHolds(Quota):
    """a release that is cancelled gives nothing back"""

    async def reserve(self, request: GenerateRequest) -> Any:
        class Slow(TokenReservation):
            async def release(self) -> None:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await super().release()

        return Slow(self, request.tenant, (await super().reserve(request))._estimate)


class WallClock(Quota):
    """time is taken from the computer's clock, which can be set"""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self._clock = time.time


class ForgetsTenants(Quota):
    """a tenant without open requests is forgotten, and with it what it has used"""

    def end(self, tenant: str | None, estimate: int, used: int) -> None:
        super().end(tenant, estimate, used)
        if not self._accounts[tenant].running:
            del self._accounts[tenant]


class ClosesOnce(Quota):
    """closing twice raises"""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True


MUTANTS = (
    DoubleRelease,
    ReleaseForgets,
    ReleaseDoesNothing,
    SettleKeepsPlace,
    RefusalHolds,
    CancelledHolds,
    Race,
    EstimateStays,
    OveruseIsFree,
    PromptsAreFree,
    OneForAll,
    CaseBlindTenants,
    OneMore,
    OneLess,
    Overflows,
    NeverRefills,
    WrongError,
    SharedReservation,
    CancelledReleaseHolds,
    WallClock,
    ForgetsTenants,
    ClosesOnce,
)
