"""The list of the page Savings: a tenant's month a row."""

from dashboard.lists import Column, List
from dashboard.pages.savings.selector import ShownRow


def _verdict(row: ShownRow) -> str:
    return f"▼ {row.verdict}" if row.is_loss else row.verdict


class SavingsList(List):
    name = "savings"
    columns = (
        Column(
            "tenant",
            "Tenant",
            path="row.tenant",
            note=lambda row: row.row.tenant_name,
            link=lambda row, scope: scope.link("savings", tenant=row.row.tenant),
        ),
        Column("gross", "Prefill saved", "number", path="row.gross", words=lambda row: row.gross),
        Column("costs", "Costs", "number", path="row.costs", words=lambda row: row.costs),
        Column(
            "net",
            "Net",
            "number",
            path="row.net",
            words=lambda row: row.net,
            note=lambda row: row.row.currency,
        ),
        Column("currency", "Currency", path="row.currency", shown=False),
        Column("verdict", "In words", value=_verdict, order=""),
    )
    search = ("row.tenant", "row.tenant_name")
    search_label = "Search tenants"
    default_sort = "-net"
    rows = 10  # each has its formula below
    nothing = "pages/savings/nothing.html"
