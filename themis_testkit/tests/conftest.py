from __future__ import annotations

from hypothesis import HealthCheck, settings

# Time limits of single examples fail on a busy machine; the suite has its own.
settings.register_profile("testkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("testkit")
