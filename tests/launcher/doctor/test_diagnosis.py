"""The comparison of ranks' results: which rank is slow, differs or failed, and what a reader sees of it."""

import json

import pytest

from launcher.contract.doctor_record import CheckResult, DoctorRecord
from launcher.doctor.diagnosis import diagnose
from launcher.doctor.report import Report

HOSTS = dict(enumerate(("n1", "n1", "n2", "n2", "n3")))


def result(check="speed", subject="copy", verdict="ok", found="fine", **fields):
    return CheckResult(check=check, subject=subject, verdict=verdict, found=found, remedy="repair it", **fields)


def records(*results):
    return [
        DoctorRecord(rank=rank, check="end", results=tuple(each if isinstance(each, list) else [each]), complete=True)
        for rank, each in enumerate(results)
    ]


def rates(*figures, share=0.9):
    return records(*(result(figure=figure, unit="GB/s", least_share=share) for figure in figures))


@pytest.mark.parametrize(
    ("figures", "slow"),
    [
        ((10.0, 10.2, 9.8, 10.1), []),
        ((10.0, 9.0, 10.0, 10.0), []),  # exactly the least share
        ((10.0, 8.9, 10.0, 10.0), [1]),
        ((10.0, 1.0), [1]),
        ((1.0, 10.0, 10.0), [0]),
        ((1.0, 1.0, 10.0, 10.0, 10.0), [0, 1]),
        ((5.0,), []),
    ],
)
def test_a_rank_far_below_the_others_median_is_slow(figures, slow):
    lines, troubles = diagnose(rates(*figures), HOSTS)
    assert [each.rank for each in troubles] == slow
    assert [line.state for line in lines] == ["slow" if slow else "ok"]
    assert all(each.host == HOSTS[each.rank] and each.remedy == "repair it" for each in troubles)


def test_figures_that_are_not_compared_find_nothing():
    assert diagnose(rates(10.0, 0.1, share=0.0), HOSTS)[1] == []


@pytest.mark.parametrize(
    ("values", "differing", "text"),
    [
        (("a", "a", "a"), [], ""),
        (("a", "b"), [1], "b, but a on rank 0"),
        (("a", "b", "b"), [0], "a, but b on ranks 1, 2"),
        (("a", "a", "b", "c"), [2, 3], "b, but a on ranks 0, 1"),
    ],
)
def test_ranks_unlike_the_most_are_named(values, differing, text):
    lines, troubles = diagnose(records(*(result(same=value) for value in values)), HOSTS)
    assert [each.rank for each in troubles] == differing
    if differing:
        assert troubles[0].found == text and lines[0].state == "differs"


def test_a_failed_rank_keeps_its_words_and_what_is_wanted():
    failed = result(verdict="failed", found="3 GB/s", wanted=">= 5 GB/s")
    lines, troubles = diagnose(records(result(), failed), HOSTS)
    assert str(troubles[0]) == "speed: copy: rank 1 on host n1: 3 GB/s (wanted: >= 5 GB/s); repair it"
    assert (lines[0].state, lines[0].found, lines[0].ranks) == ("failed", "3 GB/s", 2)


def test_a_line_shows_the_common_words_or_the_range_of_the_figures():
    alike = records(*(result(found="1 of 2 GB", figure=1.0, unit="GB") for _ in range(2)))
    other = records(result(found="1 GB/s", figure=1.0, unit="GB/s"), result(found="2 GB/s", figure=2.0, unit="GB/s"))
    assert [diagnose(found, HOSTS)[0][0].found for found in (alike, other)] == ["1 of 2 GB", "1 to 2 GB/s"]


def test_lines_follow_the_checks_also_where_ranks_share_items():
    found = records(
        [result("operations", "a"), result("operations", "c"), result("memory", "plan")],
        [result("operations", "b"), result("memory", "plan")],
    )
    lines, _ = diagnose(found, HOSTS)
    assert [(line.check, line.subject, line.ranks) for line in lines] == [
        ("operations", "a", 1),
        ("operations", "c", 1),
        ("operations", "b", 1),
        ("memory", "plan", 2),
    ]


def test_a_second_start_adds_its_checks():
    first, second = records(result(), result()), records(result("restart"), result("restart", verdict="left_out"))
    lines, troubles = diagnose(first + second, HOSTS)
    assert [(line.check, line.state) for line in lines] == [("speed", "ok"), ("restart", "ok")]
    assert troubles == []


def test_the_table_folds_many_items_but_none_that_failed():
    fine = [
        result("operations", f"op {number}", figure=number / 100, unit="of what is allowed") for number in range(30)
    ]
    bad = result("operations", "op 30", verdict="failed", found="forward 1.0e-01")
    lines, troubles = diagnose(records([*fine, bad]), HOSTS)
    report = Report(lines, troubles, 1, 2.0, "/logs")
    rows = [line.split("  ") for line in str(report).splitlines()]
    assert [row[0] for row in rows if row[0] in ("ok", "failed")] == ["failed", "ok"]
    assert "30 items (--json lists them)" in str(report) and "largest: 0.29 of what is allowed, op 29" in str(report)
    assert len(json.loads(report.to_json())["checks"]) == 31
    assert str(report).endswith("1 finding: 31 results of 1 rank in 2 s\nlogs: /logs")
