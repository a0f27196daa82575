"""Forms as text, and back."""

import pytest

from lowrank_export.converter.budget.forms import Form, read_form


@pytest.mark.parametrize("form", [Form(("q5_0",)), Form(("q8_0", "iq4_nl"), 128)])
def test_text_and_back(form: Form) -> None:
    assert read_form(str(form)) == form


@pytest.mark.parametrize(
    "text", ["", "128 q8_0", "q8_0 q8_0 q8_0", "-1 q8_0 q8_0", "0 q8_0 q8_0", "1e9 a b", "1 a b c"]
)
def test_no_form(text: str) -> None:
    with pytest.raises(ValueError):
        read_form(text)
