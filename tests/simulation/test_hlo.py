"""Compiled programs, read from their text."""

import jax
import jax.numpy as jnp
import pytest

from jaxfed.simulation import hlo

pytestmark = pytest.mark.quick

N = 32
PRODUCT = 2 * N**3


def program(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return hlo.parsed(jax.jit(function).lower(count, *arguments).compile().as_text())


@pytest.fixture(scope="module")
def loops():
    """A loop of 5 turns around one of `count` turns, each with a product; one product before."""

    def function(count, x):
        def outer(i, y):
            return jax.lax.fori_loop(0, count, lambda i, y: jnp.tanh(y @ x), y + i)

        return jax.lax.fori_loop(0, 5, outer, x @ x)

    return program(function, (N, N))


@pytest.mark.parametrize("turns", [1, 7])
def test_a_loop_counts_as_often_as_it_runs(loops, turns):
    found = hlo.work(loops, turns)
    assert (found.wide, found.narrow) == ((1 + 5 * turns) * PRODUCT, 0)
    one = 4 * N * N
    assert found.bytes >= (1 + 5 * turns) * 3 * one


def test_a_local_step_is_a_turn_of_the_loop_whose_length_the_data_decide(loops):
    assert hlo.local_step(loops).wide == PRODUCT
    assert hlo.local_step(loops).kernels < hlo.work(loops).kernels


def test_without_such_a_loop_the_whole_program_is_one_step():
    found = program(lambda count, x: x @ x, (N, N))
    assert hlo.local_step(found) == hlo.work(found)


def test_a_slice_moves_its_own_bytes_and_not_those_of_the_whole():
    found = program(lambda i, x: jax.lax.dynamic_slice_in_dim(x, i, 1) * 2, (1000, N))
    assert 2 * 4 * N <= hlo.work(found).bytes < 20 * 4 * N


def test_a_convolution_and_its_groups_are_counted_and_seen():
    def convolve(count, x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", feature_group_count=2, dimension_numbers=LAYOUT
        )

    found = program(convolve, (2, 6, 6, 4), (3, 3, 2, 8))
    assert hlo.work(found).wide == 2 * (2 * 6 * 6 * 8) * (3 * 3 * 2)
    assert len(hlo.grouped(found)) == 1
    assert hlo.grouped(program(lambda count, x: x @ x, (N, N))) == []


LAYOUT = ("NHWC", "HWIO", "NHWC")
TEXT = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: bf16[8,16], y: bf16[16,4]) -> f32[8,4] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %y = bf16[16,4]{1,0} parameter(1)
  %gemm = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%x, %y), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %out = f32[8,4]{1,0} get-tuple-element(%gemm), index=0
  %begun = f32[8,4]{1,0} all-reduce-start(%out), to_apply=%sum
  ROOT %all = f32[8,4]{1,0} all-reduce-done(%begun)
}
"""


def test_products_of_libraries_and_collectives_are_read_fast_memory_and_workspace_move_nothing():
    found = hlo.work(hlo.parsed(TEXT))
    assert found.narrow == 2 * 8 * 16 * 4
    assert found.collectives == (("all-reduce", 1, 4 * 8 * 4),)
    assert found.kernels == 2
    assert found.bytes == (2 * 16 * 4 + 4 * 8 * 4) + 2 * 4 * 8 * 4


def test_what_a_tpu_fetches_ahead_is_read_once_and_of_a_slice_its_own_bytes():
    fast = "{1,0:T(8,128)S(1)}"
    text = (
        "ENTRY %main (x: f32[32,128]) -> f32[32,128] {\n"
        "  %x = f32[32,128]{1,0:T(8,128)} parameter(0)\n"
        f"  %a = (f32[32,128]{fast}, f32[32,128]{{1,0:T(8,128)}}, u32[]{{:S(2)}}) copy-start(%x)\n"
        f"  %b = f32[32,128]{fast} copy-done(%a)\n"
        "  %c = ((f32[32,128]{1,0:T(8,128)}), "
        f"f32[8,128]{fast}, s32[]{{:S(2)}}) slice-start(%x), slice={{[0:8], [0:128]}}\n"
        f"  %d = f32[8,128]{fast} slice-done(%c)\n"
        "  %e = (f32[32,128]{1,0:T(8,128)}, "
        f"f32[32,128]{fast}, u32[]{{:S(2)}}) copy-start(%b)\n"
        "  ROOT %f = f32[32,128]{1,0:T(8,128)} copy-done(%e)\n}\n"
    )
    assert hlo.work(hlo.parsed(text)).bytes == 4 * 128 * (32 + 8 + 32)


def test_a_batched_product_of_a_tpu_is_no_more_than_it_is():
    """As a convolution over clients whose inputs stand apart, so that a window meets one."""
    line = (
        "  ROOT %y = f32[25,20,8]{2,1,0} convolution(%x, %k), "
        "window={size=25 stride=24 lhs_dilate=25}, dim_labels=0bf_0io->0bf"
    )
    text = (
        "ENTRY %main (x: f32[25,20,4], k: f32[25,4,8]) -> f32[25,20,8] {\n"
        "  %x = f32[25,20,4]{2,1,0} parameter(0)\n  %k = f32[25,4,8]{2,1,0} parameter(1)\n"
        f"{line}\n}}\n"
    )
    assert hlo.work(hlo.parsed(text)).wide == 25 * 2 * 20 * 4 * 8
