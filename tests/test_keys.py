"""A key stands for everything up to its chunk's end, and for nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_mp.keys import chunk_keys, tenant_of
from lmcache_mp.namespace import Namespace

NAMESPACE = Namespace(model="m", dtype="bfloat16", chunk_tokens=4, shard_bytes=64)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(prompt=tokens, other=tokens)
def test_prompts_share_the_keys_of_their_common_whole_chunks_and_no_others(
    prompt: list[int], other: list[int]
) -> None:
    ours, theirs = chunk_keys(NAMESPACE, prompt), chunk_keys(NAMESPACE, other)
    assert len(ours) == len(prompt) // 4
    common = 0
    while common < min(len(prompt), len(other)) and prompt[common] == other[common]:
        common += 1
    shared = sum(a == b for a, b in zip(ours, theirs, strict=False))
    assert shared == min(common // 4, len(ours), len(theirs))
    assert set(ours) & set(theirs) == set(list(ours)[:shared])


@given(prompt=tokens)
def test_every_way_to_hand_in_the_ids_gives_the_same_keys(prompt: list[int]) -> None:
    expected = chunk_keys(NAMESPACE, prompt)
    packed = array("I", prompt)
    for form in (tuple(prompt), packed, packed.tobytes(), memoryview(packed), array("Q", prompt)):
        assert chunk_keys(NAMESPACE, form) == expected


def test_a_prompt_shorter_than_a_chunk_has_no_keys() -> None:
    assert len(chunk_keys(NAMESPACE, [1, 2, 3])) == 0


PROMPT = list(range(12))


@pytest.mark.parametrize(
    "other",
    [
        chunk_keys(NAMESPACE, PROMPT, salt="tenant"),
        chunk_keys(NAMESPACE, PROMPT, lora="adapter"),
        chunk_keys(NAMESPACE, PROMPT, extra=[(0, "image")]),
        chunk_keys(Namespace(model="n", dtype="bfloat16", chunk_tokens=4, shard_bytes=64), PROMPT),
        chunk_keys(Namespace(model="m", dtype="float16", chunk_tokens=4, shard_bytes=64), PROMPT),
        chunk_keys(
            Namespace(model="m", revision="2", dtype="bfloat16", chunk_tokens=4, shard_bytes=64),
            PROMPT,
        ),
        chunk_keys(
            Namespace(model="m", dtype="bfloat16", chunk_tokens=4, shard_bytes=64, num_shards=2),
            PROMPT,
        ),
    ],
)
def test_requests_that_must_not_share_have_no_key_in_common(other: object) -> None:
    assert not set(chunk_keys(NAMESPACE, PROMPT)) & set(other)  # type: ignore[call-overload]


def test_an_extra_key_counts_from_its_chunk_on_at_its_position() -> None:
    plain = list(chunk_keys(NAMESPACE, PROMPT))
    here = list(chunk_keys(NAMESPACE, PROMPT, extra=[(5, "image")]))
    there = list(chunk_keys(NAMESPACE, PROMPT, extra=[(6, b"image")]))
    assert here[0] == there[0] == plain[0]
    assert not {*here[1:]} & {*there[1:]}
    assert not {*here[1:]} & {*plain[1:]}
    assert list(chunk_keys(NAMESPACE, PROMPT, extra=[(99, "beyond")])) == plain


def test_the_tenant_is_a_digest_of_the_salt_and_not_the_salt() -> None:
    assert tenant_of("") == b""
    assert len(tenant_of("secret")) == 8
    assert tenant_of("secret") != tenant_of("secreT")
    keys = chunk_keys(NAMESPACE, PROMPT, salt="secret")
    assert keys.tenant == tenant_of("secret")
    assert b"secret" not in keys.buffer


def test_another_process_with_another_hash_seed_computes_the_same_keys() -> None:
    code = (
        "from lmcache_mp.keys import chunk_keys; from lmcache_mp.namespace import Namespace;"
        "ns = Namespace(model='m', dtype='bfloat16', chunk_tokens=4, shard_bytes=64);"
        "print(chunk_keys(ns, range(12), salt='s', lora='l', extra=[(1, 'x')]).buffer.hex())"
    )
    expected = chunk_keys(NAMESPACE, PROMPT, salt="s", lora="l", extra=[(1, "x")]).buffer.hex()
    for seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        shown = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        assert shown.stdout.decode().strip() == expected


def test_the_scheme_has_not_changed() -> None:
    """Caches outlive versions: a change here makes every stored chunk a miss."""
    keys = chunk_keys(NAMESPACE, PROMPT, salt="s", lora="l", extra=[(5, "image")])
    assert [key.hex()[:16] for key in keys] == [
        "a70e080359bcacc4",
        "aabd9089da0a5e1b",
        "f4f38ffe6fae9f25",
    ]


@pytest.mark.parametrize("bad", [[-1, 2, 3, 4], [2**32], ["a"], [1.5], array("d", [1.0]), "text"])
def test_what_is_no_token_id_is_refused_with_a_sentence(bad: object) -> None:
    with pytest.raises(ValueError, match="token ids"):
        chunk_keys(NAMESPACE, bad)  # type: ignore[arg-type]


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="position -1"):
        chunk_keys(NAMESPACE, PROMPT, extra=[(-1, "x")])


def test_keys_are_a_sequence() -> None:
    keys = chunk_keys(NAMESPACE, PROMPT)
    assert keys[0] == keys.buffer[:32]
    assert keys[-1] == keys.buffer[-32:]
    assert keys.first(2).buffer == keys.buffer[:64]
    with pytest.raises(IndexError, match="key 3 of 3"):
        keys[3]
