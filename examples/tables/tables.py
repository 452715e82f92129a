"""Measurements as Arrow record batches: a source, a filter, and statistics by sensor."""

import pyarrow as pa
import pyarrow.compute as pc


def measurements(ctx):
    """Source: one record batch after another."""
    rows = ctx.params["rows"]
    for start in range(0, ctx.params["count"], rows):
        number = pa.array(range(start, start + rows))
        sensor = pc.subtract(number, pc.multiply(pc.divide(number, 3), 3))
        yield pa.record_batch({"sensor": sensor, "value": pc.multiply(number, 0.5)})


def high(frame, ctx):
    """Map: the rows above a threshold; batches without any are not sent."""
    table = frame.arrow()
    found = table.filter(pc.greater(table["value"], ctx.params["above"]))
    return found if found.num_rows else None


class Statistics:
    """Sink: keeps sums, not tables, so that credits go back."""

    def __init__(self):
        self.parts = []

    def on_frame(self, frame, ctx):
        self.parts.append(frame.arrow().group_by("sensor").aggregate([("value", "sum"), ("value", "count")]))

    def on_stop(self, ctx):
        total = pa.concat_tables(self.parts).group_by("sensor")
        return total.aggregate([("value_sum", "sum"), ("value_count", "sum")]).sort_by("sensor").to_pylist()
