"""Reading collectives from a program's text, in the forms that backends print."""

import pytest

from fgo_jax.analysis import Collective, collectives

PROGRAM = """HloModule step

%small (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%a), replica_groups={{0,1},{2,3}}, to_apply=%sum
}

%large (b: bf16[64,4]) -> bf16[64,4] {
  ROOT %all-gather.1 = bf16[64,4]{1,0} all-gather(%b), replica_groups=[1,4]<=[4], dimensions={0}
}

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %z = f32[] add(%x, %y)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %c = f32[8]{0} conditional(%i, %p, %q), branch_computations={%small, %large}
  LINE
  ROOT %r = f32[8]{0} copy(%c)
}
"""
SMALL = Collective("all-reduce", 8, 32.0, 1)
LARGE = Collective("all-gather", 256, 0.75 * 512, 1)
AXES = "replica_groups=mesh['data'=2,'model'=4] {'model'}"


def test_all_branches_or_the_dearest():
    assert collectives(PROGRAM) == [SMALL, LARGE]
    assert collectives(PROGRAM, dearest=True) == [LARGE]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        # Of a ring of k a sum passes twice, all else once, and (k - 1) / k of it leaves a device.
        (f"%s = f32[16]{{0}} all-reduce(%p), {AXES}", ("all-reduce", 16, 1.5 * 64)),
        (f"%s = f32[4]{{0}} reduce-scatter(%p), {AXES}", ("reduce-scatter", 4, 0.75 * 64)),
        (f"%s = (f32[2], f32[6]) all-to-all(%p, %q), {AXES}", ("all-to-all", 6, 0.75 * 32)),
        ("%s = f32[6]{0} collective-permute(%p), pairs={{0,1}}", ("collective-permute", 6, 24.0)),
        ("%s = pred[6]{0} collective-permute(%p), pairs={{0,1}}", ("collective-permute", 6, 6.0)),
        # What is only started has its operands in its result.
        (f"%s = (f32[4], f32[16]) all-gather-start(%p), {AXES}", ("all-gather", 16, 0.75 * 64)),
        (f"%s = f32[16] all-reduce-start(%p), {AXES}", ("all-reduce", 16, 1.5 * 64)),
        (
            "%s = f32[8] all-reduce(%p), replica_groups=mesh['a'=8] {'a':(1)2}",
            ("all-reduce", 8, 32.0),
        ),
    ],
)
def test_what_each_kind_sends(line, found):
    assert collectives(PROGRAM.replace("LINE", line)) == [SMALL, LARGE, Collective(*found, 0)]
