from pathlib import Path

import pytest
import yaml

FORMS = Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE"


@pytest.mark.parametrize("name", ["fault", "wish"])
def test_a_form_asks_for_what_doctor_prints(name):
    form = yaml.safe_load((FORMS / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = {field["id"]: field for field in form["body"]}
    assert "recall-lightning doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["attributes"]["render"] == "text"
    needed = [own for own, field in fields.items() if field.get("validations", {}).get("required")]
    assert ("doctor" in needed) == (name == "fault")
