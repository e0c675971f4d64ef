import itertools

from hypothesis import given
from hypothesis import strategies as st

from isthmus.workflows.row_reading import groups_of_like_length


@given(st.lists(st.integers(1, 3000), max_size=60))
def test_texts_of_like_length_are_read_together_and_padded_by_a_third_at_most(lengths):
    groups = groups_of_like_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert all(longest - lengths[i] <= lengths[i] / 3 for i in group)
    tops = [max(lengths[i] for i in group) for group in groups]
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(tops))
