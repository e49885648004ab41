"""Tensors of every type and of all kinds of small shapes."""

from hypothesis import strategies as st

from microkernel import DATA_TYPES, Tensor, encode_bytes


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    """A tensor of that name, whose data fits its type and shape."""
    datatype = DATA_TYPES[draw(st.sampled_from(sorted(DATA_TYPES)))]
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = 1
    for size in shape:
        count *= size
    if datatype.size:
        data = draw(st.binary(min_size=count * datatype.size, max_size=count * datatype.size))
    else:
        data = encode_bytes(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
    return Tensor(name, datatype, shape, data)
