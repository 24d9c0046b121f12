"""Whatever stands in flags and environment: a configuration within its bounds, or exit status 2 and
one message that names the option."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.configuration import FLAGS, OPTIONS, VARIABLES, said_of
from serving.options import environment_name

CHOICES = sorted({choice for option in OPTIONS for choice in option.metadata["choices"]})

# The system hands over bytes without zeros, decoded with surrogates where they are not UTF-8.
TEXT = st.binary(max_size=30).map(
    lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape")
)
# What nearly suits: numbers of all sizes and notations, choices, lists, and their separators.
NUMBERS = st.integers().map(str) | st.floats().map(str) | st.integers(-2, 70000).map(str)
NINES = "9" * 5000
WORDS = st.sampled_from(
    (
        *CHOICES,
        *("true", "FALSE", "1", "0", "", " ", ",", "-", "--", "nan", "-inf", "1e999", "1_0"),
        *(NINES, "٣", "0x10", "latest:1", f"latest:{NINES}", "specific:1,2", f"specific:{NINES}"),
        *("http://[", "http://h:99999", "https://u:p@h:1/\x7f", "http://\u2100:1", "%s", "@file"),
    )
)
VALUES = WORDS | NUMBERS | TEXT | st.lists(NUMBERS | WORDS, max_size=4).map(",".join)
ARGUMENTS = st.lists(
    st.sampled_from(FLAGS)
    | VALUES
    | st.tuples(st.sampled_from(FLAGS), VALUES).map("=".join)
    | st.sampled_from(FLAGS).map(lambda flag: flag[:-1]),
    max_size=5,
)
ENVIRONMENTS = st.dictionaries(st.sampled_from(VARIABLES) | TEXT, VALUES, max_size=4)


@settings(max_examples=400)
@given(argv=ARGUMENTS, environ=ENVIRONMENTS)
@example(argv=[], environ={"DIGITS_OTLP_ENDPOINT": "http://[::1"})
@example(argv=["--version-policy", "specific:" + "9" * 5000], environ={})
def test_any_flags_and_environment_are_a_configuration_or_exit_with_status_2(
    argv: Sequence[str], environ: Mapping[str, str]
) -> None:
    said_of(argv, environ)


@settings(max_examples=400)
@given(given=st.tuples(st.sampled_from(OPTIONS), VALUES))
def test_any_value_of_any_option_is_within_its_bounds_or_refused_by_name(
    given: tuple[dataclasses.Field[object], str],
) -> None:
    option, text = given
    flag = f"--{option.name.replace('_', '-')}"
    said = said_of([f"{flag}={text}"], {})
    assert not said or flag in said
    said = said_of([], {environment_name(option.name): text})
    assert not said or environment_name(option.name) in said or flag in said
