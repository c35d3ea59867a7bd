"""The table of neighbourhoods in an image."""

from diffmatch.topology.cubical.plane import ring_table


def test_as_many_components_of_higher_pixels_as_of_lower_ones():
    number, links, first = (table.astype(int) for table in ring_table())
    for mask in range(256):
        lower, upper = ([i for i in links[side, mask] if i >= 0] for side in range(2))
        touching = mask & 0b01010101
        if touching and mask != 255:
            assert len(lower) == len(upper) == number[mask] >= 1
        assert all(mask >> i & 1 and i % 2 == 0 for i in lower)
        assert not any(mask >> i & 1 for i in upper)
        assert first[0, mask] == (lower[0] if lower else -1)
        assert first[1, mask] == (upper[0] if upper else -1)


def test_known_neighbourhoods():
    number, _, _ = ring_table()
    assert number[0] == 0
    assert number[0b11111111] == 1
    assert number[0b00010001] == 2  # north and south
    assert number[0b00000111] == 1  # north and east, joined by the corner between them
    assert number[0b00000101] == 2  # without it they are not
    assert number[0b01010101] == 4
    assert number[0b10101010] == 0  # corners do not touch the centre
