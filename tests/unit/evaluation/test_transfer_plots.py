import re

from tests.unit.evaluation.small_reproduction import crossing

from isthmus.evaluation.figure_style import INK, STYLES, svg_file
from isthmus.evaluation.transfer_plots import transfer_rates


def drawn(*pairs: tuple[str, str]) -> str:
    rows = [m for pair in pairs for m in crossing("backdoor", pair)]
    svg = transfer_rates(rows, "rates", "Rates")
    assert svg is not None
    return svg


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_sources_of_one_target_have_a_panel_each():
    shown = words(drawn(("A", "T"), ("B", "T")))
    assert [text for text in shown if text.endswith("→")] == ["A →", "B →"]
    # Axes of one source name the target alone.
    assert [text for text in words(drawn(("A", "T"), ("A", "U"))) if "→" in text] == []


def test_many_crossings_take_several_rows():
    svg = drawn(*(("A", name) for name in "STUVW"))
    assert {"S", "T", "U", "V", "W"} <= set(words(svg))


def test_a_map_whose_answers_were_not_read_shows_its_swap():
    shown = words(drawn(("A", "T")))
    assert "Transferred · autoencoder" in shown
    assert "no rate; swap 0.10" in shown
    # Of several draws the strongest, as it counts against the transfer.
    assert "no rate; swap 0.30" in shown


def test_nothing_is_drawn_without_a_rate():
    rows = [m for m in crossing("backdoor", ("A", "T")) if m.metric == "swap"]
    assert transfer_rates(rows, "rates", "Rates") is None


def test_a_saved_figure_has_plain_colours_that_every_program_can_read():
    page = drawn(("A", "T"))
    assert "var(" in page
    assert "currentColor" in page
    saved = svg_file(page)
    assert "var(" not in saved
    assert "currentColor" not in saved
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", saved.partition("</style>")[2])
    assert {INK, STYLES["native"].light} <= set(colours)
    assert all(re.fullmatch(r"#[0-9a-f]{6}|none", colour) for colour in colours)


def test_a_saved_figure_is_readable_on_a_dark_page():
    saved = svg_file(drawn(("A", "T")))
    style = STYLES["native"]
    assert f'[style*="fill: {style.light}"] {{ fill: {style.dark} !important; }}' in saved
