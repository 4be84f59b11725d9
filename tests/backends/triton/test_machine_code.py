"""The search for registers that nothing wrote, on the loop that ptxas got wrong and a right one."""

from __future__ import annotations

from tests.backends.triton.machine_code import in_listing

# What is left of it: in one branch of the loop R30 is stored before R35 is put there.
LOOP = """
  .L_x_4:
        /*0000*/ @P1 BRA `(.L_x_0) ;
        LDG.E R8, desc[UR22][UR4.64] ;
        PRMT R9, R8.reuse, 0x7610, R9 ;
        BRA `(.L_x_2) ;
  .L_x_0:
        IMAD.U32 R35, RZ, RZ, UR10 ;
        {first}
        {second}
        @!P0 BRA `(.L_x_3) ;
  .L_x_2:
        STG.E desc[UR22][UR20.64], R9 ;
  .L_x_3:
        @P0 BRA `(.L_x_4) ;
        EXIT ;
"""
USE, COPY = "PRMT R9, R30, 0x7610, R9 ;", "PRMT R30, R35, 0x7610, R30 ;"


def test_a_lost_copy_is_found() -> None:
    assert in_listing(LOOP.format(first=USE, second=COPY)) == [USE.removesuffix(" ;")]
    assert in_listing(LOOP.format(first=COPY, second=USE)) == []
