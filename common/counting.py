"""How many rows there are, at a cost that does not grow with their number: counted while few, else estimated."""

import json
from typing import Any

from django.db.models import QuerySet

FEW = 10_000


def estimate(rows: QuerySet[Any]) -> int:
    """How many rows a query gives, as the planner believes."""
    said = rows.order_by().values("pk").explain(format="json")
    return int(json.loads(said)[0]["Plan"]["Plan Rows"])


def counted(rows: QuerySet[Any], most: int = 1000) -> int:
    """How many rows there are, counted up to `most`."""
    return rows.order_by()[:most].count()


def about(rows: QuerySet[Any]) -> int:
    """How many rows there are: exactly below FEW, else as the planner believes and at least FEW.

    For queries that an index answers: one of few rows that no index finds would read the whole table.
    """
    number = counted(rows, FEW)
    return number if number < FEW else max(number, estimate(rows))
