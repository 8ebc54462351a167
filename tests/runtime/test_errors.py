"""What a user reads when something is wrong."""

from millrace.runtime.errors import UserError


def test_a_user_error_names_field_value_problem_and_remedy() -> None:
    error = UserError("--port", 80, "in use", "give another")
    assert str(error) == "--port=80: in use; give another"
    assert (error.field, error.value) == ("--port", 80)
