import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm


def check(name, vllm_python, engine_environment, *arguments, may_skip=None):
    """`may_skip`: what the script says on stderr if it can't run here."""
    script = Path(__file__).with_name(name)
    done = subprocess.run(
        [str(vllm_python), str(script), *map(str, arguments)],
        env=engine_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if may_skip is not None and done.stderr.strip() == may_skip:
        pytest.skip(may_skip)
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_layout_is_read_and_written_block_by_block(vllm_python, engine_environment):
    check("check_tensors.py", vllm_python, engine_environment)


def test_a_model_says_what_a_lossy_codec_changes(vllm_python, engine_environment, tmp_path):
    check("check_agreement.py", vllm_python, engine_environment, tmp_path)


def test_kv_is_told_apart_by_more_than_rounding(vllm_python, engine_environment):
    check("check_rounding.py", vllm_python, engine_environment)


def test_every_setting_of_vllm_counts_or_is_harmless_for_a_reason(vllm_python, engine_environment):
    check("check_settings.py", vllm_python, engine_environment)


def test_copies_are_ordered_by_streams_and_events_alone(vllm_python, engine_environment):
    check("check_streams.py", vllm_python, engine_environment)


def test_one_kernel_moves_what_plain_torch_moves(vllm_python, engine_environment):
    check("check_rows.py", vllm_python, engine_environment, may_skip="no triton")


def test_every_kind_of_kv_cache_is_stored_or_known_to_be_refused(vllm_python, engine_environment):
    check("check_specs.py", vllm_python, engine_environment)


def test_published_models_keep_what_the_planner_says(vllm_python, engine_environment):
    """By vLLM's own code of 24 models, built without weights."""
    check("check_sizes.py", vllm_python, engine_environment)


def test_lossy_codecs_are_bounded_and_the_same_everywhere(vllm_python, engine_environment):
    check("check_lossy.py", vllm_python, engine_environment)
