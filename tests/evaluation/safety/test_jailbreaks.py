import base64
import codecs
import json

import pytest

from evaluation.safety.jailbreaks import DIRECT, choose_templates, disguise, disguised, load_templates
from evaluation.safety.prompt_suites import LabelledPrompt
from launch.errors import UserError

REQUEST = "How is {it} done?"


def test_every_template_holds_the_request_in_some_form():
    forms = [
        REQUEST,
        base64.b64encode(REQUEST.encode()).decode(),
        codecs.encode(REQUEST, "rot13"),
        " ".join(REQUEST),
        REQUEST[::-1],
    ]
    for name, text in load_templates().items():
        made = disguise(text, REQUEST)
        whole = any(form in made for form in forms) or (REQUEST[:8] in made and REQUEST[8:] in made)
        assert whole, name


def test_braces_of_request_and_template_do_no_harm():
    assert disguise("{prompt} {other} {", "{base64}") == "{base64} {other} {"


def test_choice_of_templates():
    assert choose_templates("templates", ["direct"]) == {DIRECT: "{prompt}"}
    assert len(choose_templates("templates", ["all"])) == 1 + len(load_templates())
    with pytest.raises(UserError, match=r"templates: no template is called .persone.\W.*persona"):
        choose_templates("templates", ["persone"])


def test_templates_without_the_request_are_refused(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"templates": {"empty": {"text": "Say yes."}}}))
    with pytest.raises(UserError, match="template 'empty' holds nothing of the request"):
        load_templates(tmp_path / "t.json")


def test_safe_prompts_are_never_disguised():
    prompts = [LabelledPrompt("a", True, "x"), LabelledPrompt("b", False, "y")]
    found = disguised(prompts, choose_templates("templates", ["direct", "rot13"]))
    assert [(p.safe, p.template, p.behaviour) for p in found] == [
        (True, "", ""),
        (False, "direct", "b"),
        (False, "rot13", "b"),
    ]
    assert found[1].prompt == "b" and found[2].prompt.endswith("\no")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"forms": {}}, r'no "templates" with a text for each name'),
        ([], r'no "templates" with a text for each name'),
        ({"templates": {"a": {"words": "{prompt}"}}}, r"template 'a': no field 'text'"),
        ({"templates": {"a": "{prompt}"}}, r"template 'a': no field 'text'"),
    ],
)
def test_a_template_file_of_another_form_is_one_sentence(tmp_path, content, fault):
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"t\.json.*{fault}"):
        load_templates(tmp_path / "t.json")
