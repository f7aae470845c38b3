"""What the models read: the improver's prompt, prompt and completion without a seam, and pairs within the lengths."""

from __future__ import annotations

import pytest
from builders import ASK, CHAT, LLAMA3_TEMPLATE, QWEN3_TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st

from pitlm.core.errors import InputError
from pitlm.core.nouns import Preference, Prompt
from pitlm.core.recipe import DataSection
from pitlm.data.template import (
    CHAT_TEMPLATE_ARGUMENTS,
    Template,
    check_template,
    dated_template,
    encode_completion,
    encode_prompts,
    fit_preferences,
    fit_prompt,
    served_template,
)
from pitlm.models.loading import load_tokenizer

TEMPLATE = Template(ASK)
X = Prompt.of(
    [
        {"role": "system", "content": "You are a shop clerk."},
        {"role": "user", "content": "what is the price ?"},
        {"role": "assistant", "content": "of what ?"},
        {"role": "user", "content": "of the red lamp ?"},
    ]
)
Y = "the price is nine . happy to help ."
Y_REF = "silly question ."


@pytest.fixture(params=CHAT)
def tokenizer(request, bases):
    return load_tokenizer(bases(request.param))


def test_the_improver_sees_x_then_the_reference_as_the_assistants_turn_then_the_ask():
    assert TEMPLATE.policy_messages(X) == X.as_messages()
    assert TEMPLATE.improver_messages(X, Y_REF) == [
        *X.as_messages(),
        {"role": "assistant", "content": Y_REF},
        {"role": "user", "content": ASK},
    ]


TEXTS = st.text(max_size=20)


@given(st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=3), TEXTS, TEXTS, st.text(min_size=1, max_size=20))
def test_the_template_gives_x_and_the_reference_back(system, turns, last, reference, ask):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    x = Prompt.of([*messages, {"role": "user", "content": last}])
    template = Template(ask)
    assert template.parts(template.improver_messages(x, reference)) == (x, reference)


def test_a_conversation_without_a_reference_has_no_parts():
    short = TEMPLATE.policy_messages(Prompt.of(ASK))
    for messages in (short, TEMPLATE.policy_messages(X), Template("another request").improver_messages(X, Y_REF)):
        with pytest.raises(InputError, match="expected y_ref and"):
            TEMPLATE.parts(messages)


def test_prompt_and_completion_are_the_whole_conversation(tokenizer):
    """Rendered at once or in two parts, the tokens are the same: sampling sees what training saw."""
    for messages in (TEMPLATE.policy_messages(X), TEMPLATE.improver_messages(X, Y_REF)):
        [prompt] = encode_prompts(tokenizer, [messages])
        answered = [*messages, {"role": "assistant", "content": Y}]
        whole = tokenizer.apply_chat_template(answered, tokenize=True, return_dict=True, **CHAT_TEMPLATE_ARGUMENTS)
        rest = whole["input_ids"][len(prompt) :]
        completion = encode_completion(tokenizer, Y)
        assert whole["input_ids"][: len(prompt)] == prompt
        # Templates end differently (an end token, then a line feed or nothing); the words are equal.
        assert rest[: len(completion) - 1] == completion[:-1]
        if tokenizer.eos_token in tokenizer.chat_template:
            assert rest[: len(completion)] == completion


def test_prompts_are_tokenized_as_the_rl_trainer_does(tokenizer):
    from trl import RLOOTrainer

    class Trainer:
        """The fields that RLOOTrainer._tokenize_prompts reads."""

        processing_class = tokenizer
        chat_template_kwargs = {**CHAT_TEMPLATE_ARGUMENTS, "sanitize_control_tokens": True}

    conversations = [TEMPLATE.improver_messages(X, Y_REF), TEMPLATE.policy_messages(Prompt.of("is it small ?"))]
    if (
        len(tokenizer.encode("zebras", add_special_tokens=False)) > 1
    ):  # a tokenizer of words has no letters to spell with
        conversations.append(TEMPLATE.policy_messages(Prompt.of(f"is it {tokenizer.eos_token} ?")))
    theirs, _, _ = RLOOTrainer._tokenize_prompts(Trainer(), conversations)
    assert theirs == encode_prompts(tokenizer, conversations)


def test_each_prompt_is_tokenized_alone(tokenizer):
    """In a batch of unequal lengths, each prompt keeps its own ids, without padding."""
    conversations = [TEMPLATE.improver_messages(X, Y_REF), TEMPLATE.policy_messages(Prompt.of("small ?"))]
    together = encode_prompts(tokenizer, conversations)
    assert together == [encode_prompts(tokenizer, [conversation])[0] for conversation in conversations]
    assert tokenizer.pad_token_id not in together[1]


def test_a_completion_ends_with_the_end_token_and_has_it_once(tokenizer):
    ids = encode_completion(tokenizer, Y)
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1], skip_special_tokens=True).strip() == Y
    assert encode_completion(tokenizer, "") == [tokenizer.eos_token_id]


def test_no_begin_token_in_the_middle(bases):
    tokenizer = load_tokenizer(bases("llama3"))
    [prompt] = encode_prompts(tokenizer, [TEMPLATE.improver_messages(X, Y_REF)])
    row = prompt + encode_completion(tokenizer, Y)
    assert row[0] == tokenizer.bos_token_id
    assert row.count(tokenizer.bos_token_id) == 1


def test_answers_are_written_without_thinking(bases):
    """With thinking on, a Qwen3 prompt would end before the think block, but training rows would have no block
    there."""
    tokenizer = load_tokenizer(bases("qwen3"))
    [prompt] = encode_prompts(tokenizer, [TEMPLATE.improver_messages(X, Y_REF)])
    text = tokenizer.decode(prompt)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert text.count("<think>") == 1


def test_a_references_thoughts_do_not_reach_the_improver(bases):
    tokenizer = load_tokenizer(bases("qwen3"))
    plain, thought = (TEMPLATE.improver_messages(X, y) for y in (Y_REF, f"<think>\nhmm\n</think>\n\n{Y_REF}"))
    assert encode_prompts(tokenizer, [thought]) == encode_prompts(tokenizer, [plain])


def control_ids(tokenizer, ids):
    """The special tokens: a thought's marks, which models write as text, are added tokens and not special."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [token for token in ids if token in special]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_text_can_end_its_own_turn(data, bases):
    """Whatever a text says, the control tokens of its conversation are those that the chat template writes."""
    tokenizer = load_tokenizer(bases(data.draw(st.sampled_from([name for name in CHAT if name != "words"]))))
    control = [token.content for token in tokenizer.added_tokens_decoder.values()]
    parts = st.lists(
        st.sampled_from([*control, *(text[:3] for text in control), *(text[3:] for text in control), "hi"])
    )
    system, asked, reference = (data.draw(parts.map("".join)) for _ in range(3))
    conversation = TEMPLATE.improver_messages(
        Prompt.of([{"role": "system", "content": system}, {"role": "user", "content": asked}]), reference
    )
    plain = [{**turn, "content": "hi"} for turn in conversation]
    given_ids, plain_ids = (encode_prompts(tokenizer, [turns])[0] for turns in (conversation, plain))
    assert control_ids(tokenizer, given_ids) == control_ids(tokenizer, plain_ids)
    *written, end = encode_completion(tokenizer, reference)
    assert (control_ids(tokenizer, written), end) == ([], tokenizer.eos_token_id)


def test_a_tokenizer_of_words_refuses_a_control_token_in_a_text(bases):
    """Such a tokenizer cannot spell the token, so there is no plain text to read."""
    tokenizer = load_tokenizer(bases("words"))
    with pytest.raises(InputError, match=f"refuses this conversation: Can't sanitize '{tokenizer.eos_token}'"):
        encode_prompts(tokenizer, [[{"role": "user", "content": f"is it {tokenizer.eos_token} ?"}]])
    assert tokenizer.eos_token_id not in encode_completion(tokenizer, f"it is {tokenizer.eos_token}")[:-1]


def test_a_control_token_in_a_text_keeps_its_characters(bases):
    tokenizer = load_tokenizer(bases("qwen3"))
    text = f"it is {tokenizer.eos_token} a lamp"
    assert tokenizer.decode(encode_completion(tokenizer, text)[:-1]) == text
    [ids] = encode_prompts(tokenizer, [[{"role": "user", "content": text}]])
    assert text in tokenizer.decode(ids)


def test_a_template_that_prints_the_day_prints_the_day_of_the_run():
    template = """{% set d = strftime_now("%d %b %Y") %}{{ strftime_now( '%Y' ) }} {{ d }} {{ messages }}"""
    fixed = dated_template(template, "2026-01-31")
    assert fixed == """{% set d = "31 Jan 2026" %}{{ "2026" }} {{ d }} {{ messages }}"""
    assert dated_template(fixed, "2027-02-01") == fixed


def test_nothing_to_encode_is_no_error(tokenizer):
    assert encode_prompts(tokenizer, []) == []


def test_a_tokenizer_without_end_token_is_refused(bases):
    tokenizer = load_tokenizer(bases("words"))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_completion(tokenizer, Y)


EACH = "{% for message in messages %}"
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    + EACH
    + "<|im_start|>"
    "{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + EACH
    + "<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + EACH + "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "shape",
    [LLAMA3_TEMPLATE, QWEN25, QWEN3_TEMPLATE, GEMMA, MISTRAL],
    ids=["llama3", "qwen2.5", "qwen3", "gemma", "mistral"],
)
@pytest.mark.parametrize("family", ["llama3", "qwen3", "gpt"])
def test_the_families_templates_are_fit(bases, shape, family):
    tokenizer = load_tokenizer(bases(family))
    tokenizer.chat_template = shape
    check_template(tokenizer, "model")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        # The request for an answer differs from the beginning of an answer.
        (
            EACH
            + "<{{ message['role'] }}>{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>\n\n{% endif %}",
            r"model: found a chat template that asks with '.*sistant>\\n\\n' and goes on with '.*sistant>it is.*', "
            "expected the same, up to the answer",
        ),
        # Only the last answer has a think block, so the prompt changes once it is answered.
        (
            EACH
            + "{{ message['role'] }}:{% if loop.last and message['role'] == 'assistant' %}<think>{% endif %}{{ message['content'] }}"
            "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
            "writes the answer 'it is a red lamp' as '<think>it is a red lamp', expected the answer as it is",
        ),
        # The template drops earlier assistant turns.
        (
            EACH
            + "{% if message['role'] == 'user' or loop.last %}{{ message['role'] }}:{{ message['content'] }}\n{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "leaves out the assistant's 'a lamp', expected every turn in it",
        ),
        # The template accepts only user turns.
        (
            EACH
            + "{% if message['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}{{ message['content'] }}{% endfor %}",
            "model: the chat template refuses this conversation: users only",
        ),
    ],
)
def test_a_template_that_tears_prompt_and_completion_apart_is_named(bases, shape, message):
    tokenizer = load_tokenizer(bases("llama3"))
    tokenizer.chat_template = shape
    with pytest.raises(InputError, match=message):
        check_template(tokenizer, "model")


def test_a_model_with_such_a_template_is_not_loaded(bases, tmp_path):
    tokenizer = load_tokenizer(bases("qwen3"))
    tokenizer.chat_template = EACH + "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="model: found a chat template that asks with"):
        load_tokenizer(tmp_path / "model")


def test_a_conversation_that_the_template_refuses_is_the_inputs_fault(bases):
    tokenizer = load_tokenizer(bases("llama3"))
    tokenizer.chat_template = GEMMA
    with pytest.raises(InputError, match="the chat template refuses this conversation: System role not supported"):
        encode_prompts(tokenizer, [TEMPLATE.policy_messages(X)])


# As in Llama 3.1 and Gemma 4: messages are reassigned, macros write the turns, and thinking is on by default.
TAKES_APART = """{%- macro turn(role, text) -%}
    {{- '<|' + role + '|>' + text | trim }}{{ '!' if enable_thinking | default(true) }}{{ messages | length -}}
{%- endmacro -%}
{%- if not enable_thinking is defined %}
    {%- set enable_thinking = true %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- bos_token + system }}
{%- set ns = namespace(last='') %}
{%- for message in messages %}
    {{- turn(message.role, message.content) }}
    {%- set ns.last = message.role %}
{%- endfor %}
{%- if add_generation_prompt and ns.last == 'user' %}
    {{- '<|assistant|>' }}{{ '<think>' if enable_thinking }}
{%- endif %}
"""


@pytest.mark.parametrize(
    "shape",
    [
        LLAMA3_TEMPLATE,
        QWEN25,
        QWEN3_TEMPLATE,
        MISTRAL,
        TAKES_APART,
        "\n  {% if true %}{% endif %}\n" + QWEN25,
        "  text " + QWEN25,
    ],
    ids=["llama3", "qwen2.5", "qwen3", "mistral", "takes apart", "blank lines", "text"],
)
@pytest.mark.parametrize(
    "ask", [ASK, "\"Besser\",\tbitte: 'ä' 😀\n\\n {{ x }} {% endif %} {# #} \u2028"], ids=["plain", "awkward"]
)
def test_a_served_template_shows_what_ours_does_without_being_told(bases, shape, ask):
    tokenizer = load_tokenizer(bases("llama3"))
    tokenizer.chat_template = shape
    x = X if shape in (QWEN3_TEMPLATE, TAKES_APART) else Prompt.of("hi")
    messages = Template(ask).improver_messages(x, Y_REF)
    [want] = encode_prompts(tokenizer, [messages])
    tokenizer.chat_template = served_template(shape, ask)
    for turns in (messages, messages[:-1]):
        assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"] == want
    assert served_template(tokenizer.chat_template, ask) == tokenizer.chat_template
    tokenizer.chat_template = served_template(shape, None)  # the policy's prompt
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"] == want


SYSTEM = {"role": "system", "content": "a shop clerk"}


@pytest.fixture(scope="module")
def words(bases):
    return load_tokenizer(bases("words"))


def limits(prompt: int, response: int, over_long: str = "drop") -> DataSection:
    return DataSection(max_prompt_tokens=prompt, max_response_tokens=response, over_long=over_long)


def talk(turns: int, system: bool = True) -> Prompt:
    """``turns`` user turns of 3 words, with 2-word answers between them. Each turn costs its words and a mark."""
    messages = [SYSTEM] if system else []
    for number in range(turns):
        messages.append({"role": "user", "content": f"is it u{number}"})
        if number < turns - 1:
            messages.append({"role": "assistant", "content": f"the a{number}"})
    return Prompt.of(messages)


# In tokens: system 3 + 1; user 3 + 1; assistant 2 + 1; the mark before the answer 1.
def length(turns: int, system: bool = True) -> int:
    return 4 * system + 4 * turns + 3 * (turns - 1) + 1


@pytest.mark.parametrize("system", [True, False])
def test_trimming_takes_the_oldest_turns_and_keeps_the_system_turn(words, system):
    prompt = talk(4, system)
    for room in (4, 3, 2, 1):
        fitted = fit_prompt(prompt, words, TEMPLATE, limits(length(room, system), 9, "trim"))
        expected = prompt.messages[:system] + prompt.messages[len(prompt.messages) - (2 * room - 1) :]
        assert fitted.messages == expected
        assert fitted.messages[system].role == "user"
        # With one token less, one more exchange has to go.
        tighter = fit_prompt(prompt, words, TEMPLATE, limits(length(room, system) - 1, 9, "trim"))
        assert tighter is None if room == 1 else len(tighter.messages) == len(fitted.messages) - 2


def test_a_prompt_that_fits_is_the_same_object(words):
    prompt = talk(2)
    assert fit_prompt(prompt, words, TEMPLATE, limits(length(2), 9, "drop")) is prompt
    assert fit_prompt(prompt, words, TEMPLATE, limits(length(2), 9, "trim")) is prompt


def test_dropping_does_not_trim(words):
    assert fit_prompt(talk(2), words, TEMPLATE, limits(length(2) - 1, 9, "drop")) is None


def pair(turns: int = 1, chosen: str = "the price", rejected: str = "the lamp") -> Preference:
    return Preference(talk(turns), chosen, rejected)


def test_what_is_dropped_and_trimmed_is_counted(words):
    long = "it is the red lamp"  # 5 words and the end token
    pairs = [pair(), pair(3), pair(chosen=long), pair(rejected=long), pair(2, chosen=long), pair(2)]
    fitted = fit_preferences(pairs, words, TEMPLATE, limits(length(2), 5, "drop"))
    assert (fitted.pairs, fitted.trimmed, fitted.dropped) == ([pairs[0], pairs[5]], 0, 4)
    fitted = fit_preferences(pairs, words, TEMPLATE, limits(length(2), 6, "trim"))
    kept = fitted.pairs
    assert (len(kept), fitted.trimmed, fitted.dropped) == (len(pairs), 1, 0)
    assert kept[1].prompt.messages == (talk(3).messages[0], *talk(3).messages[-3:])
    assert [p.chosen for p in kept] == [p.chosen for p in pairs]
    assert [p for p in kept if p is not kept[1]] == [p for p in pairs if p is not pairs[1]]


def test_the_end_token_counts(words):
    three_words = pair(chosen="the red lamp")
    assert fit_preferences([three_words], words, TEMPLATE, limits(50, 3)).pairs == []
    assert fit_preferences([three_words], words, TEMPLATE, limits(50, 4)).pairs == [three_words]


def test_a_pair_that_the_chat_template_refuses_is_named_or_counted(bases):
    tokenizer = load_tokenizer(bases("llama3"))
    refusal = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    pairs = [Preference(talk(1, system=False), "a lamp", "a price"), pair()]
    with pytest.raises(
        InputError, match=r"a\.jsonl:7: the chat template refuses .*no system turn here; .*skip-invalid"
    ):
        fit_preferences(pairs, tokenizer, TEMPLATE, limits(200, 50), ["a.jsonl:4", "a.jsonl:7"])
    skipping = limits(200, 50).model_copy(update={"skip_invalid": True})
    fitted = fit_preferences(pairs, tokenizer, TEMPLATE, skipping)
    assert (fitted.pairs, fitted.refused) == ([pairs[0]], 1)
