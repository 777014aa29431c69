"""One scrape of GET /metrics, from `metrics.table`. Costs a fixed number of database queries,
whatever the number of tenants, and one Valkey call per tenant.

While Valkey does not answer, its series are left out: a stale number would look current.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from base import counting
from base.counting import BUCKETS_S, Timing
from catalog.kinds import QUEUES
from catalog.models import Store
from catalog.occupancy import occupancies
from catalog.sessions import live_since
from catalog.stores import DEFAULT
from catalog.usage import counted_since
from dashboard import probes
from dashboard.pages.jobs.selector import jobs_by_kind
from dashboard.pages.nodes.selector import NodeRow, node_rows, sessions
from dashboard.storage import hot_server, storage_use
from metrics.table import PLATFORM, TENANT, Found, PlatformFacts, Row, TenantFacts
from tenants.principal import Principal
from tenants.room import promised_bytes

FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}
DAY_S = 86_400


class Scrape(Collector):
    """Reads all values in `collect`. Series of the platform are for operators only."""

    def __init__(self, seen_by: Principal) -> None:
        self.seen_by = seen_by

    def collect(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        server = hot_server()
        tenants = list(_tenants(self.seen_by, now, hot_answers=server is not None))
        labelled = [({"tenant": facts.tenant.slug}, facts) for facts in tenants]
        yield from (_family(row, labelled) for row in TENANT)
        if self.seen_by.is_operator:
            platform = PlatformFacts(
                answers={probe.name: probe.read() for probe in probes.ALL},
                server=server,
                promised_bytes=promised_bytes(),
                jobs=jobs_by_kind(self.seen_by, now=now),
                stores=_stores(),
                bus=counting.read(QUEUES),
            )
            yield from (_family(row, [({}, platform)]) for row in PLATFORM)


def _tenants(seen_by: Principal, now: datetime, *, hot_answers: bool) -> Iterator[TenantFacts]:
    tenants, now_s = seen_by.tenants, now.timestamp()
    ids = [tenant.pk for tenant in tenants]
    uses = storage_use(tenants, now_s, hot_answers=hot_answers)
    counted = counted_since(tenant_ids=ids, since_ts=int(now_s) - int(now_s) % DAY_S)
    occupied = occupancies(ids)
    nodes: defaultdict[int, list[NodeRow]] = defaultdict(list)
    for row in node_rows(sessions(tenants, now=now), live_since=live_since()):
        nodes[row.session.tenant_id].append(row)
    for tenant in tenants:
        id_ = tenant.pk
        yield TenantFacts(tenant, uses[id_], counted[id_], occupied[id_], nodes[id_])


def _stores() -> dict[str, bool | None]:
    """Workers ask all but the default, which each web process asks by itself."""
    others = Store.objects.filter(is_default=False).values_list("name", "failing_since")
    asked: dict[str, bool | None] = {name: since is None for name, since in others}
    return {DEFAULT: probes.COLD.read().is_well} | asked


def _family(row: Row, labelled: Iterable[tuple[dict[str, str], object]]) -> Metric:
    """The family of a row; without samples if every value is unknown."""
    family: Metric = FAMILIES[row.type](row.name, row.help)
    for labels, facts in labelled:
        for more, found in row.samples(facts):
            for suffix, part, number in _parts(row, found):
                family.add_sample(f"{family.name}{suffix}", labels | more | part, number)
    return family


def _parts(row: Row, found: Found) -> Iterator[tuple[str, dict[str, str], float]]:
    """(suffix of the name, extra labels, number) of each sample; none if the number is unknown."""
    if isinstance(found, Timing):
        for number, most_s in zip(found.buckets, (*BUCKETS_S, math.inf), strict=True):
            le = floatToGoString(most_s)  # type: ignore[no-untyped-call]  # of prometheus_client
            yield "_bucket", {"le": le}, number
        yield "_count", {}, found.buckets[-1]
        yield "_sum", {}, found.sum_s
    elif found is not None:
        yield "_total" if row.type == "counter" else "", {}, float(found)
