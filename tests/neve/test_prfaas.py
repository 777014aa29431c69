"""Prefill by another cluster: the published case, and how answers follow from their inputs."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.cli.main import main
from neve.cli.plan.prfaas import PUBLISHED, PUBLISHED_LENGTHS, PUBLISHED_LOCAL_S
from neve.errors import Misuse
from neve.planner.prfaas import (
    Clusters,
    Curve,
    LogNormal,
    Measured,
    point,
    quantile,
    scaled_to,
    solve,
)

H200 = Curve.through([(tokens, seconds) for tokens, seconds, _ in PUBLISHED])
MEAN_S, P90_S = PUBLISHED_LOCAL_S
H20 = scaled_to(H200, PUBLISHED_LENGTHS, mean_s=MEAN_S, share=0.9, share_s=P90_S)
CASE = Clusters(
    remote=H200,
    local=H20,
    kv_fixed_bytes=174 * 2**20,
    kv_bytes_per_token=16_740 * 1.048576,
    decode_per_s=20 * 40 / 1024,
    remote_instances=4,
    local_instances=8,
    baseline_instances=12,
    link_bytes_per_s=100e9 / 8,
)


def _plan(*options: str) -> dict:
    done = CliRunner().invoke(main, ["plan", "prfaas", "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_published_case_follows_from_published_inputs_within_5_percent():
    found = _plan()
    assert found["threshold_tokens"] == pytest.approx(19_400, rel=0.05)
    assert found["offloaded"] == pytest.approx(0.496, rel=0.05)
    assert found["requests_per_s"] == pytest.approx(3.24, rel=0.05)
    assert found["baseline"]["requests_per_s"] == pytest.approx(2.11, rel=0.05)
    assert found["egress_bytes_per_s"] * 8 == pytest.approx(13e9, rel=0.05)
    # Further published results that none of the inputs is taken from.
    assert (found["prefill_instances"], found["decode_instances"]) == (3, 5)
    assert found["baseline"]["prefill_instances"] == 9
    assert found["long_tokens"] == pytest.approx(44_000, rel=0.05)
    assert found["mean_tokens"] == pytest.approx(27_000, rel=0.05)
    assert found["prefill_mean_s"] == pytest.approx(2.22, rel=0.05)
    assert found["gain"] == pytest.approx(1.54, rel=0.05)
    assert found["limited_by"] == ["remote prefill", "local prefill"]


def test_first_token_times_of_the_published_table_are_prefill_times_without_waiting():
    """The assumption by which H20's speed is found, held against H200's."""
    whole = PUBLISHED_LENGTHS.moments(128, 128_000)
    assert H200.mean(whole) == pytest.approx(1.74, rel=0.05)
    assert H200.at(quantile(PUBLISHED_LENGTHS, 0.9)) == pytest.approx(3.51, rel=0.05)


def test_both_prefill_clusters_are_full_at_the_best_threshold():
    best = solve(CASE, PUBLISHED_LENGTHS).best
    assert best.remote_per_s == pytest.approx(best.local_per_s, rel=0.001)
    for factor in (0.8, 0.95, 1.05, 1.25):
        other = point(CASE, PUBLISHED_LENGTHS, factor * best.threshold_tokens, 3)
        assert other.requests_per_s < best.requests_per_s


def test_a_slow_link_raises_the_threshold_and_limits():
    best = solve(CASE, PUBLISHED_LENGTHS).best
    slow = solve(replace(CASE, link_bytes_per_s=4e9 / 8), PUBLISHED_LENGTHS).best
    assert slow.threshold_tokens > best.threshold_tokens
    assert "link" in slow.limits
    assert slow.egress_bytes_per_s <= 4e9 / 8 * 1.0001


def test_the_mean_of_the_times_is_longer_than_the_time_at_the_mean_length():
    at_mean, of_each = (solve(CASE, PUBLISHED_LENGTHS, by_each_length=one) for one in (False, True))
    assert of_each.best.requests_per_s < at_mean.best.requests_per_s
    assert of_each.baseline.requests_per_s < at_mean.baseline.requests_per_s


@settings(max_examples=15, deadline=None)
@given(
    remote=st.integers(1, 20),
    local=st.integers(2, 5),
    link=st.floats(1e7, 1e11),
    what=st.sampled_from(["remote_instances", "link_bytes_per_s", "local_instances"]),
)
def test_more_machines_or_a_faster_link_never_serve_less(remote, local, link, what):
    one = replace(CASE, remote_instances=remote, local_instances=local, link_bytes_per_s=link)
    more = replace(one, **{what: getattr(one, what) * 2})
    before, after = (solve(each, PUBLISHED_LENGTHS).best.requests_per_s for each in (one, more))
    assert after >= before * 0.999  # the grid's fineness


def test_moments_are_those_of_drawn_lengths():
    mu, sigma, draws = 9.0, 0.7, random.Random(7)
    drawn = [draws.lognormvariate(mu, sigma) for _ in range(200_000)]
    kept = [length for length in drawn if 1_000 < length <= 30_000]
    exact, measured = LogNormal(mu, sigma, 1_000, 30_000), Measured([round(one) for one in kept])
    for low, high in ((0, math.inf), (5_000, math.inf), (0, 5_000), (6_000, 9_000)):
        assert measured.moments(low, high) == pytest.approx(exact.moments(low, high), rel=0.02)
    assert quantile(measured, 0.9) == pytest.approx(quantile(exact, 0.9), rel=0.02)


def test_all_of_a_measured_distribution_is_above_or_up_to_a_threshold():
    lengths = Measured([5, 5, 5, 9])
    assert lengths.moments(lengths.least, lengths.most)[0] == 1
    one = point(CASE, lengths, 6, 3)
    assert (one.offloaded, one.long_tokens, one.short_tokens) == (0.25, 9, 5)
    with pytest.raises(Misuse, match="uncached"):
        Measured([0])


def test_curves_pass_through_few_points_and_refuse_falling_ones():
    assert Curve.through([(1_000, 0.5)]).at(2_000) == pytest.approx(1.0)
    line = Curve.through([(1_000, 0.5), (3_000, 0.9)])
    assert [line.at(1_000), line.at(3_000)] == pytest.approx([0.5, 0.9])
    with pytest.raises(Misuse, match="less time"):
        Curve.through([(1_000, 0.9), (3_000, 0.5)])
    with pytest.raises(Misuse, match="above the mean"):
        scaled_to(H200, PUBLISHED_LENGTHS, mean_s=4, share=0.9, share_s=3)


def test_the_command_takes_measured_points_and_lengths(tmp_path: Path):
    (tmp_path / "remote").write_text("# of one instance\n1000, 0.5, 100\n10000 1.5 200\n")
    (tmp_path / "local").write_text("1000 1\n10000 4\n")
    (tmp_path / "lengths").write_text("\n".join(str(100 * n) for n in range(1, 300)))
    found = _plan(
        *("--points", str(tmp_path / "remote"), "--local-points", str(tmp_path / "local")),
        *("--lengths", str(tmp_path / "lengths")),
    )
    assert found["mean_tokens"] == pytest.approx(15_000)
    assert 0 < found["offloaded"] < 1
    assert not any("H20" in line for line in found["assumptions"])


def test_every_unpublished_input_is_named():
    done = CliRunner().invoke(main, ["plan", "prfaas"])
    assert done.exit_code == 0
    assert done.output.count("not published") == 3
    assert "routing threshold     19,3" in done.output


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("1000 1\n", ["--points"], "line 1: needs 3 numbers"),
        ("", ["--points"], "has no line of 3 numbers"),
        ("1000 1 5\n", ["--points"], "give --local-points, or --local-mean-s and --local-p90-s"),
        ("1 2 x\n", ["--lengths"], "line 1: needs 1 numbers"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text, options, words):
    (tmp_path / "file").write_text(text)
    done = CliRunner().invoke(main, ["plan", "prfaas", *options, str(tmp_path / "file")])
    assert done.exit_code == 1
    assert words in done.output
