import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import SiteError
from isthmus.core.sites import Site, Stream, parse_site, parse_sites

STREAMS = st.sampled_from(list(Stream))
SIZED = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))
"""A layer and the number of layers of a model that has it."""

_PLAIN_TEXTS = """
from isthmus.core.errors import SiteError
from isthmus.core.sites import Site, Stream
print(Site(0, "resid_pre").stream is Stream.RESID_PRE)
try:
    Site(0, "resid_mid")
except SiteError as error:
    print(error)
"""


@given(sized=SIZED, stream=STREAMS)
@settings(deadline=None)
def test_a_site_is_read_as_it_is_written(sized, stream):
    layer, n_layers = sized
    site = Site(layer, stream)
    assert parse_site(str(site), n_layers) == parse_site(site, n_layers) == site


def test_a_stream_given_as_text_is_that_stream_or_is_refused():
    # In a process of its own: in tests, types are checked before the site sees its stream.
    said = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _PLAIN_TEXTS], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == ["True", "no stream 'resid_mid': use one of " + ", ".join(Stream)]


@given(sized=SIZED, stream=STREAMS)
@settings(deadline=None)
def test_a_negative_layer_counts_from_the_end(sized, stream):
    layer, n_layers = sized
    from_the_end = layer - n_layers
    site = Site(layer, stream)
    assert parse_site(f"{stream}[{from_the_end}]", n_layers) == site
    assert parse_site(Site(from_the_end, stream), n_layers) == site
    assert parse_site(from_the_end, n_layers) == Site(layer)


@given(sized=SIZED)
@settings(deadline=None)
def test_a_layer_alone_means_the_output_of_its_block(sized):
    layer, n_layers = sized
    site = Site(layer, Stream.RESID_POST)
    assert parse_site(layer, n_layers) == parse_site(str(layer), n_layers) == site


@given(depth=st.floats(0, 1), n_layers=st.integers(1, 200))
@settings(deadline=None)
def test_a_depth_is_the_layer_nearest_to_that_share_of_the_model(depth, n_layers):
    site = parse_site(depth, n_layers)
    assert site.stream is Stream.RESID_POST
    assert 0 <= site.layer < n_layers
    assert abs(site.layer - depth * (n_layers - 1)) <= 0.5
    assert parse_site(f"{depth:.17f}", n_layers) == parse_site(float(f"{depth:.17f}"), n_layers)


@given(pair=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), n_layers=st.integers(1, 200))
@settings(deadline=None)
def test_a_greater_depth_is_never_an_earlier_layer(pair, n_layers):
    shallow, deep = pair
    assert parse_site(shallow, n_layers).layer <= parse_site(deep, n_layers).layer


@pytest.mark.parametrize(
    ("depth", "layer"), [(0.0, 0), ("0.0", 0), (0.6, 7), (1.0, 11), ("1.", 11)]
)
def test_a_number_with_a_point_is_a_depth_and_not_a_layer(depth, layer):
    assert parse_site(depth, 12) == Site(layer)


@pytest.mark.parametrize("written", ["  resid_pre[3]  ", "resid_pre [ 3 ]", "resid_pre[-9]"])
def test_blanks_and_negative_layers_are_read(written):
    assert parse_site(written, 12) == Site(3, Stream.RESID_PRE)


@pytest.mark.parametrize("missing", [12, -13, "12", "-13", "resid_post[12]", Site(12)])
def test_a_layer_that_the_model_does_not_have_is_refused_with_those_it_has(missing):
    with pytest.raises(SiteError, match="layers 0 to 11"):
        parse_site(missing, 12)


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan"), float("inf"), "1.5", "nan", "-0.5"])
def test_a_depth_outside_of_the_model_is_refused(depth):
    with pytest.raises(SiteError, match="between 0 and 1"):
        parse_site(depth, 12)


@pytest.mark.parametrize("written", ["9" * 5000, f"resid_post[{'9' * 5000}]"])
def test_more_digits_than_a_number_may_have_are_refused(written):
    with pytest.raises(SiteError):
        parse_site(written, 12)


def test_an_unknown_stream_is_refused_with_those_there_are():
    with pytest.raises(SiteError, match=r"'resid_mid'.*resid_pre, attn_out, mlp_out, resid_post"):
        parse_site("resid_mid[3]", 12)


@pytest.mark.parametrize("nonsense", ["", "layer 3", "resid_post", "resid_post[]", "resid_post[a]"])
def test_what_is_no_site_is_refused_with_an_example(nonsense):
    with pytest.raises(SiteError, match=r"resid_post\[12\]"):
        parse_site(nonsense, 12)


@given(text=st.text(max_size=20), n_layers=st.integers(1, 40))
@settings(deadline=None)
def test_any_text_is_a_site_of_the_model_or_a_site_error(text, n_layers):
    try:
        site = parse_site(text, n_layers)
    except SiteError:
        return
    assert 0 <= site.layer < n_layers


def test_sites_come_in_the_order_in_which_they_are_named():
    mixed = (Site(3), Site(0, Stream.MLP_OUT), Site(11))
    assert parse_sites("3, mlp_out[0], -1", 12) == mixed
    assert parse_sites([3, "mlp_out[0]", 1.0], 12) == mixed


def test_all_means_every_block_once():
    assert parse_sites(" all ", 5) == tuple(Site(layer) for layer in range(5))


@pytest.mark.parametrize("twice", ["3,3", "3,resid_post[3]", [-1, 1.0], "2, 5, -10"])
def test_a_site_named_twice_in_any_spelling_is_refused(twice):
    with pytest.raises(SiteError, match="twice"):
        parse_sites(twice, 12)


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_no_site_at_all_is_refused(nothing):
    with pytest.raises(SiteError, match="at least one"):
        parse_sites(nothing, 12)


def test_sites_are_ordered_by_layer_first():
    sites = [Site(2), Site(0, Stream.RESID_PRE), Site(1, Stream.ATTN_OUT)]
    assert [site.layer for site in sorted(sites)] == [0, 1, 2]
