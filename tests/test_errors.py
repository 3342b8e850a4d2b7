from flashmore.errors import LONGEST, FlashmoreError


def test_a_part_of_a_message_stays_readable_however_long_the_value_in_it_is() -> None:
    error = FlashmoreError("a word", "b" + "x" * 10**6 + "e", "another")
    assert len(error.found) <= LONGEST + 3
    assert (error.found[0], error.found[-1]) == ("b", "e")
    assert str(error).splitlines()[2] == " valid: another"
