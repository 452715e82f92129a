"""A plugin that does what it should not hurts its own flow at most."""

from __future__ import annotations

from typing import Any

import pytest

from chronetixd.records.log_record import CUT


def test_a_process_that_escaped_and_goes_on_writing_does_not_hold_the_daemon(submit: Any, client: Any) -> None:
    answer = submit([submit.node("n", "hostile:leaves_a_writer_behind")], [])
    assert answer["state"] == "stopped"
    assert client.call("list")["flows"][0]["state"] == "stopped"


@pytest.mark.parametrize("size", [1_000_000, 20_000_000])
def test_a_failure_with_a_text_of_megabytes_is_told_shortly(size: int, submit: Any, client: Any) -> None:
    answer = submit([submit.node("n", "hostile:raises_a_long_text", params={"size": size})], [])
    assert answer["state"] == "failed"
    described = client.call("describe", flow=answer["flow"])
    assert "in phase 'source': ValueError: zzz" in described["reason"]
    assert len(str(described)) < 500_000


def test_a_failure_that_cannot_tell_its_text_is_told_by_its_type(submit: Any) -> None:
    answer = submit([submit.node("n", "hostile:has_no_text")], [])
    assert "phase 'source': Silent: (its text cannot be shown: str() raised RuntimeError)" in answer["reason"]


def test_results_that_do_not_fit_into_one_answer_are_told_by_their_size(submit: Any, client: Any) -> None:
    nodes = [submit.node(name, "hostile:LongResult", params={"size": 6_000_000}) for name in "abc"]
    answer = submit(nodes, [])
    first, *others = client.call("describe", flow=answer["flow"])["nodes"]
    assert len(first["result"]) == 6_000_000
    assert [(node["result"], node["result_left_out"]) for node in others] == [(None, 6_000_005)] * 2


def test_whatever_a_plugin_logs_its_flow_goes_on(submit: Any, client: Any) -> None:
    answer = submit([submit.node("n", "hostile:logs_anything")], [])
    assert answer["state"] == "stopped"
    odd, long = client.stream("logs", flow=answer["flow"])
    assert odd["fields"]["method_name"] == "f"
    assert len(long["line"]) == 16 * 1024 + len(CUT)


@pytest.mark.parametrize("follow", [False, True])
def test_lines_that_were_kept_are_all_shown_however_many(follow: bool, submit: Any, client: Any) -> None:
    answer = submit([submit.node("n", "hostile:prints_much")], [])
    stream = client.stream("logs", flow=answer["flow"], follow=follow)
    numbers = [int(next(stream)["line"].split()[0]) for _ in range(8000)]
    assert numbers == list(range(8000))
    stream.close()


class TestWhatItHasTheDaemonHold:
    @staticmethod
    def flow(submit: Any, source: str, **more: Any) -> Any:
        nodes = [submit.node("source", f"hostile:{source}"), submit.node("sink", "hostile:nothing")]
        return submit(nodes, [submit.edge("source", "sink")], **more)

    def test_segments_without_end_fail_its_flow_and_no_other(self, submit: Any) -> None:
        answer = self.flow(submit, "grows_without_end")
        assert answer["state"] == "failed"
        assert "another segment of node 'source' would pass the limit of 64" in answer["reason"]

    def test_a_descriptor_whose_close_waits_keeps_nobody(self, submit: Any, client: Any) -> None:
        answer = self.flow(submit, "sends_a_socket_that_lingers")
        assert answer["state"] == "failed"
        assert "descriptor" in answer["reason"]
        assert client.call("version", timeout=20)
