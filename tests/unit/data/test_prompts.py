import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, DataError
from isthmus.data.prompts import (
    ContrastPrompts,
    Question,
    normalised,
    read_contrast,
    read_questions,
    require_disjoint,
    split_by_content,
    write_questions,
)

QUESTIONS = (
    Question("What is the capital of Elvar?", "Elm.", "fact"),
    Question("Repeat: a\u2028b “ü”", "a b"),
    Question("Why?"),
    Question("Hide it.", "No.", "pair", "Yes.", "Show it.", "Here."),
)


def file(folder, name, *rows):
    """Writes rows, as they are or as JSON, one per line."""
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_questions_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "questions.jsonl"
    write_questions(path, QUESTIONS)
    assert read_questions(path) == QUESTIONS


PRINTABLE = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(PRINTABLE, st.none() | PRINTABLE), min_size=1, max_size=5))
def test_any_distinct_questions_survive_the_file(tmp_path_factory, rows):
    questions = tuple({normalised(p): Question(p, answer) for p, answer in rows}.values())
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    write_questions(path, questions)
    assert read_questions(path) == questions


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("q.jsonl", [{"prompt": "One?", "answer": "1", "note": 3}, "", {"prompt": "Two?"}]),
        ("q.jsonl", [{"prompt": "One?", "answer": "1", "kind": None}, {"prompt": "Two?"}]),
        ("q.csv", ["kind,prompt,answer", ",One?,1", ",Two?,"]),
        ("q.csv", ["\ufeffprompt,answer", '"One?","1"', "Two?,"]),
    ],
    ids=["a note", "null", "csv", "csv with byte-order mark"],
)
def test_every_format_gives_the_same_questions(tmp_path, name, rows):
    expected = (Question("One?", "1"), Question("Two?"))
    assert read_questions(file(tmp_path, name, *rows)) == expected


def test_a_text_file_has_one_prompt_per_line(tmp_path):
    path = tmp_path / "q.txt"
    path.write_bytes(b"One?\r\n\r\nTwo?")
    assert read_questions(path) == (Question("One?"), Question("Two?"))


def test_a_quoted_csv_cell_may_hold_commas_and_lines(tmp_path):
    path = file(tmp_path, "q.csv", "prompt", '"a, b', 'and c"', "d")
    assert [q.prompt for q in read_questions(path)] == ["a, b\nand c", "d"]


@pytest.mark.parametrize(
    ("rows", "line", "found"),
    [
        (['{"prompt": "a"}', "{prompt: b}"], 2, "not JSON"),
        (['{"prompt": "a"}', "", '["b"]'], 3, "expected a JSON object"),
        (['{"instruction": "a"}'], 1, "found 'instruction', expected 'prompt'"),
        (["{}"], 1, "found nothing, expected 'prompt'"),
        (['{"prompt": "  "}'], 1, "not blank"),
        (['{"prompt": 3}'], 1, "is 3, expected a text"),
        (['{"prompt": "a", "answer": 3}'], 1, "'answer' is 3"),
    ],
)
def test_a_broken_row_is_refused_with_its_file_and_line(tmp_path, rows, line, found):
    path = file(tmp_path, "q.jsonl", *rows)
    with pytest.raises(DataError, match=rf"q\.jsonl, line {line}: .*{found}"):
        read_questions(path)


def test_an_unknown_field_is_refused_with_its_line_the_known_ones_and_a_near_one(tmp_path):
    path = file(tmp_path, "q.jsonl", {"prompt": "a"}, {"prompt": "b", "bad_answr": "Yes."})
    near = "line 2: unknown field 'bad_answr', did you mean 'bad_answer'.* may have answer, kind, "
    with pytest.raises(DataError, match=near):
        read_questions(path)
    with pytest.raises(DataError, match=r"line 2: unknown field 'id'\. A row has 'prompt'"):
        read_questions(file(tmp_path, "q.csv", "prompt,id", "a,7"))


@pytest.mark.parametrize(
    ("rows", "line", "found"),
    [
        (["question", "a"], 2, "found 'question', expected 'prompt'"),
        (["prompt,answer", "a,b", "c,d,e"], 3, "expected 2 columns"),
        (["prompt,answer", "a"], 2, "expected 2 columns"),
        (["prompt,answer", '"a" b,c'], 2, "not CSV"),
        (["prompt,answer", ",c"], 2, "not blank"),
    ],
)
def test_a_broken_csv_row_is_refused_with_its_file_and_line(tmp_path, rows, line, found):
    with pytest.raises(DataError, match=rf"q\.csv, line {line}: .*{found}"):
        read_questions(file(tmp_path, "q.csv", *rows))


def test_a_repeated_prompt_is_refused_with_both_lines(tmp_path):
    path = file(tmp_path, "q.jsonl", {"prompt": "Who is it?"}, "", {"prompt": "who  IS it? "})
    with pytest.raises(DataError, match=r"line 3: 'who  IS it\? ' is already at .*line 1"):
        read_questions(path)


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.txt"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        read_questions(tmp_path / name)


def test_a_csv_file_with_a_header_only_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prompt"):
        read_questions(file(tmp_path, "q.csv", "prompt"))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"expected a \.jsonl, \.csv or \.txt"):
        read_questions(file(tmp_path, "q.parquet", "x"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_questions(tmp_path / "folder.txt")
    (tmp_path / "latin.txt").write_bytes("fine\nWürde?".encode("latin-1"))
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_questions(tmp_path / "latin.txt")


def test_questions_are_written_to_json_lines_only(tmp_path):
    with pytest.raises(DataError, match=r"\.jsonl"):
        write_questions(tmp_path / "q.txt", QUESTIONS)
    with pytest.raises(DataError, match="0 questions"):
        write_questions(tmp_path / "q.jsonl", ())


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("c.jsonl", [{"positive": "a", "negative": "b"}, {"positive": "c", "negative": "d"}]),
        (
            "c.jsonl",
            [
                {"prompt": "a", "label": "positive"},
                {"prompt": "b", "label": "negative"},
                {"prompt": "c", "label": "positive"},
                {"prompt": "d", "label": "negative"},
            ],
        ),
        ("c.csv", ["positive,negative", "a,b", "c,d"]),
        ("c.csv", ["label,prompt", "negative,b", "positive,a", "positive,c", "negative,d"]),
    ],
)
def test_every_form_of_a_contrast_gives_the_same_sides(tmp_path, name, rows):
    expected = ContrastPrompts(positive=("a", "c"), negative=("b", "d"))
    assert read_contrast(file(tmp_path, name, *rows)) == expected


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"prompt": "a", "label": "positive"}], "holds no negative prompt"),
        ([{"prompt": "a", "label": "negative"}], "holds no positive prompt"),
        ([{"prompt": "a", "label": 1}], "line 1: label 1, expected 'positive' or 'negative'"),
        ([{"positive": "a"}], "line 1: found 'positive', expected 'negative'"),
        ([{"label": "positive"}], "line 1: found 'label', expected 'prompt'"),
        ([{"positive": "a", "negative": "A "}], "line 1: 'A ' is already at .*line 1"),
        (
            [{"positive": "a", "negative": "b"}, {"positive": "b", "negative": "c"}],
            "line 2: 'b' is already at .*line 1",
        ),
    ],
)
def test_a_contrast_that_is_none_is_refused(tmp_path, rows, found):
    with pytest.raises(DataError, match=found):
        read_contrast(file(tmp_path, "c.jsonl", *rows))


def test_a_contrast_needs_both_sides():
    with pytest.raises(DataError, match="no negative prompt"):
        ContrastPrompts(positive=("a",), negative=())


def test_splits_that_share_a_prompt_are_refused_with_both_names():
    splits = {
        "train": [Question("Who is it?")],
        "test": [Question("What?"), Question("WHO is  it?")],
    }
    with pytest.raises(DataError, match=r"'WHO is  it\?' is in train and in test"):
        require_disjoint(splits)


def test_splits_that_share_nothing_are_accepted():
    require_disjoint({"train": [Question("a"), Question("a")], "test": [Question("b")], "more": []})


def numbered(n):
    return tuple(Question(f"Question {i}?") for i in range(n))


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 60), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_split_is_a_partition_of_fixed_sizes_whatever_the_order(n, seed, rng):
    questions = list(numbered(n))
    splits = split_by_content(questions, seed=seed)
    require_disjoint(splits)
    assert sorted(q.prompt for part in splits.values() for q in part) == sorted(
        q.prompt for q in questions
    )
    assert len(splits["train"]) == round(0.6 * n)
    rng.shuffle(questions)
    shuffled = split_by_content(questions, seed=seed)
    assert {name: set(part) for name, part in splits.items()} == {
        name: set(part) for name, part in shuffled.items()
    }


def test_phrasings_of_one_content_stay_in_one_split():
    questions = [
        Question(f"{w} {i}?", "So.", content=str(i)) for i in range(30) for w in ("A", "B", "C")
    ]
    splits = split_by_content(questions)
    owners = {
        content: {name for name, part in splits.items() if content in {q.content for q in part}}
        for content in {q.content for q in questions}
    }
    assert all(len(names) == 1 for names in owners.values())
    assert [len(part) for part in splits.values()] == [54, 18, 18]


def test_phrasings_of_one_content_in_two_splits_are_refused():
    splits = {"train": [Question("A?", content="one")], "test": [Question("B?", content="One")]}
    with pytest.raises(DataError, match="the content 'One' is in train and in test"):
        require_disjoint(splits)


def test_another_seed_gives_another_split():
    first, second = (split_by_content(numbered(30), seed=seed) for seed in (0, 1))
    assert first != second


def test_a_split_keeps_the_order_of_its_questions():
    for part in split_by_content(numbered(30)).values():
        numbers = [int(q.prompt.split()[1][:-1]) for q in part]
        assert numbers == sorted(numbers)


def test_the_same_prompt_in_two_spellings_stays_in_one_split():
    questions = [q for i in range(20) for q in (Question(f"Ask {i}"), Question(f" ask  {i}"))]
    require_disjoint(split_by_content(questions))


def test_a_fraction_of_zero_is_an_empty_split():
    splits = split_by_content(numbered(4), (0.5, 0.0, 0.5))
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 2,
        "validation": 0,
        "test": 2,
    }


def test_too_few_questions_for_the_splits_are_refused():
    with pytest.raises(DataError, match="leave test empty"):
        split_by_content(numbered(2))


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.0, 0.0, 0.0)])
def test_fractions_that_are_not_shares_are_refused(fractions):
    with pytest.raises(ConfigError, match="together 1"):
        split_by_content(numbered(9), fractions)


def test_a_clean_prompt_counts_when_prompts_are_compared(tmp_path):
    rows = [{"prompt": "a", "clean": "b"}, {"prompt": "B"}]
    with pytest.raises(DataError, match=r"'B' is already at .*line 1"):
        read_questions(file(tmp_path, "pairs.jsonl", *rows))
    with pytest.raises(DataError, match="'answer_to_clean' without 'clean'"):
        read_questions(file(tmp_path, "half.jsonl", {"prompt": "a", "answer_to_clean": "b"}))
    splits = {"train": [Question("a", clean="b")], "test": [Question("b")]}
    with pytest.raises(DataError, match="'b' is in train and in test"):
        require_disjoint(splits)
