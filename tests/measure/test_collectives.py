from jaxcls.measure.collectives import collectives


def test_collectives_are_counted_with_their_bytes() -> None:
    text = """
  %a = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %t = f32[2]{0} fusion(%all-reduce.3), calls=%all-gather
"""
    counts, sizes = collectives(text)
    assert counts == {"all-reduce": 1, "all-gather": 1}
    assert sizes == {"all-reduce": 44, "all-gather": 64}
