"""Other inputs of the kinds that people have, which nobody prepared for: spellings, columns, templates, transcripts, media, calls."""

import json

import pytest
from test_feedback_cases import checked_file, checked_rows

from feedback import check, find
from feedback.texts import turns_in
from helpers.errors import KitError

ASK, TELL, SHRUG = "How do I plant garlic?", "Put the cloves into the ground in autumn.", "No idea."


def one(tmp_path, prompt, reply, **more):
    """The turns of the first row, beside a plain rejected one."""
    rows = [{"prompt": prompt, "response": reply, "label": True, **more}, {"prompt": "Who?", "response": SHRUG, "label": False}]
    checked = checked_rows(tmp_path, rows)
    assert checked.ledger.rows_out == 2
    return [(turn["role"], turn["content"]) for turn in checked.rows([0])[0]["messages"]]


def refused(tmp_path, prompt, reply, **more):
    rows = [{"prompt": prompt, "response": reply, "label": True, **more}] + [
        {"prompt": f"{i}?", "response": SHRUG, "label": bool(i % 2)} for i in range(2)]
    ledger = checked_rows(tmp_path, rows).ledger
    assert ledger.rows_out == 2
    return list(ledger.refused)


VOTES = ["👍🏽 👎🏿", "＋1 －1", "plus minus", "✓ ✗", "☑ ☒", "gut schlecht", "WAHR FALSCH", "vrai faux", "bien mal", "bon mauvais", "是 否", "好 坏",
         "赞 踩", "はい いいえ", "예 아니오", "tak nie", "evet hayır", "ja nej", "хорошо плохо", "verdadero falso", "useful useless", "excellent terrible",
         "agree disagree", "win loss", "点赞 点踩", "满意 不满意", "良い 悪い", "高評価 低評価", "OK NOK", "🤩 😠", "😃 😡", "❤️ 💔"]


@pytest.mark.parametrize("pair", VOTES)
def test_votes_in_other_words_and_languages_are_read(tmp_path, pair):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": pair.split()[i % 2]} for i in range(6)]
    assert [row["label"] for row in checked_rows(tmp_path, rows).rows(range(6))] == [True, False] * 3


@pytest.mark.parametrize("values, scale", [
    (["A", "B", "D", "F"], "A,B/D,F"), (["1", "2", "5", "6"], "1,2/3,4,5,6"), (["five", "four", "two", "one"], "five,four/three,two,one"),
    (["+", "+", "-", "-"], "+/-"), ([5, 4, 1, 2], "4,5/1,2,3/-1,99"), ([False, False, True, True], "false/true"),
])
def test_votes_of_any_kind_can_be_named_by_hand_and_are_asked_about_before(tmp_path, values, scale):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "grade": value} for i, value in enumerate(values)]
    checked = checked_rows(tmp_path, rows, scale=scale)
    assert [row["label"] for row in checked.rows(range(4))] == [True, True, False, False]
    assert ": accepted; " in checked.shape.scale.words
    if values[0] not in (5, False):
        with pytest.raises(KitError, match="--scale=ACCEPTED,…/REJECTED"):
            checked_rows(tmp_path, rows)


def test_what_no_vote_means_can_be_said_too(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": [5, 1, -1, 3][i]} for i in range(4)]
    checked = checked_rows(tmp_path, rows, scale="4,5/1,2/-1")
    assert (checked.ledger.unvoted, checked.ledger.refused) == (1, {"label": 1})
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": [5, 1, 0, 3][i % 4]} for i in range(8)]
    with pytest.raises(KitError, match=r"--scale=0-5 --accept-from=4, or --scale=1-5 --accept-from=4 \(0: no vote\)"):
        checked_rows(tmp_path, rows)
    checked = checked_rows(tmp_path, rows, scale="1-5")
    assert checked.ledger.unvoted == 2 and checked.shape.scale.words == "ratings 1 to 5; 4 and more are accepted, 0 is no vote"
    with pytest.raises(KitError, match="99") as error:
        checked_rows(tmp_path, [{"prompt": f"{i}?", "response": f"{i}.", "rating": [1, 5, 4, 99][i]} for i in range(4)])
    assert "1-99" not in error.value.remedy, "99 is hardly a rating where all others are 1 to 5"


def test_a_scale_that_there_is_not_and_a_part_without_a_column_are_told_first(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": "so so"} for i in range(4)]
    with pytest.raises(KitError, match="there is no scale 'gut'.*\n.*REJECTED"):
        checked_rows(tmp_path, rows, scale="gut")
    with pytest.raises(KitError, match="'label' has no column"):
        checked_rows(tmp_path, rows, columns="label")


@pytest.mark.parametrize("value, label", [
    ([1, 1, 0], True), ([0, 0, 1], False), ("1;1;0", True), ("0|0|1", False), ([1.0, 0.0, 1.0], True), ("[1, 0, 0]", False)])
def test_of_several_annotators_with_zeros_and_ones_the_most_count(tmp_path, value, label):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "vote": vote} for i, vote in enumerate([value, 1, 0])]
    assert checked_rows(tmp_path, rows).rows([0])[0]["label"] is label


def test_annotators_in_columns_of_their_own_are_joined(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "ann": vote, "bob": vote, "cy": other} for i, vote, other in
            ((1, "up", "down"), (2, "down", None))]
    checked = checked_rows(tmp_path, rows, columns="label=ann+bob+cy")
    assert [row["label"] for row in checked.rows([0, 1])] == [True, False] and not checked.unused


@pytest.mark.parametrize("vote, text", [
    (3.5, "★★★½"), (4.5, "★ 4.5"), (4, "4 von 5"), (4, "4 sur 5"), (5, "5: excellent"), (1, "1 (worst)"), (4, "4 – good"), (3, "３")])
def test_ratings_as_text_are_numbers(vote, text):
    from feedback.labels import parse

    assert parse(text).value == vote


@pytest.mark.parametrize("prompt, reply, label", [
    ("user_message", "bot_message", "thumb"), ("Question", "Model Answer", "is_good"), ("input_text", "output_text", "Rating (1-5)"),
    ("frage", "antwort", "bewertung"), ("pregunta", "respuesta", "valoración"), ("问题", "回答", "评分"), ("вопрос", "ответ", "оценка"),
    ("chatInput", "chatOutput", "isHelpful"), ("prompt", "generated_response", "human_label")])
def test_columns_under_other_names_are_found(tmp_path, prompt, reply, label):
    rows = [{prompt: f"{i}?", reply: f"{i}.", label: i % 2} for i in range(6)]
    assert checked_rows(tmp_path, rows).ledger.rows_out == 6


def test_a_column_of_votes_against_is_never_taken_for_praise(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "thumbs_down": i % 2} for i in range(4)]
    with pytest.raises(KitError, match="--columns"):
        checked_rows(tmp_path, rows)
    with pytest.raises(KitError, match="votes against a reply.*\n.*\n.*--scale=0/1"):
        checked_rows(tmp_path, rows, columns="label=thumbs_down")
    checked = checked_rows(tmp_path, rows, columns="label=thumbs_down", scale="0/1")
    assert [row["label"] for row in checked.rows(range(4))] == [True, False, True, False]


def test_dotted_paths_lead_into_lists_and_into_json_kept_as_text(tmp_path):
    rows = [{"a": [{"p": f"{i}?"}], "r": json.dumps({"out": [{"text": f"{i}."}]}), "m": {"votes": ["up", "down"][i % 2]}} for i in range(4)]
    checked = checked_rows(tmp_path, rows, columns="prompt=a.0.p,reply=r.out.0.text,label=m.votes")
    assert checked.rows([1])[0]["messages"][1]["content"] == "1." and not checked.unused


@pytest.mark.parametrize("history", [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "User: Hi\nAssistant: Hello", [["Hi", "Hello"]],
    [{"user": "Hi", "assistant": "Hello"}], [{"question": "Hi", "answer": "Hello"}], json.dumps([["Hi", "Hello"]]), "[{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]"])
@pytest.mark.parametrize("name", ["history", "chat_history", "Conversation History"])
def test_earlier_turns_come_first_however_they_are_kept(tmp_path, history, name):
    assert one(tmp_path, ASK, TELL, **{name: history}) == [("user", "Hi"), ("assistant", "Hello"), ("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("empty", ["", "[]", [], None, float("nan")])
def test_no_history_costs_nothing_and_an_unreadable_one_is_refused(tmp_path, empty):
    assert one(tmp_path, ASK, TELL, history=empty) == [("user", ASK), ("assistant", TELL)]
    assert refused(tmp_path, ASK, TELL, history="we spoke before") == ["not a record"]


def test_a_dialogue_up_to_the_question_takes_the_reply_beside_it(tmp_path):
    for turns in ([{"role": "system", "content": "Brief."}, {"role": "user", "content": ASK}], [{"from": "human", "value": ASK}]):
        rows = [{"messages": turns, "response": reply, "rating": label} for reply, label in ((TELL, 1), (SHRUG, 0))]
        checked = checked_rows(tmp_path, rows)
        assert checked.rows([0])[0]["messages"][-2:] == [{"role": "user", "content": ASK}, {"role": "assistant", "content": TELL}]
        assert not checked.unused


def test_a_column_that_is_called_chat_and_holds_no_turns_is_listed_as_unused(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": i % 2, "chat": "web", "contents": "x"} for i in range(4)]
    checked = checked_rows(tmp_path, rows)
    assert checked.ledger.rows_out == 4 and checked.unused == {"chat": 4, "contents": 4}


def test_votes_beside_the_turns_judge_each_of_them(tmp_path):
    turns = [("user", "a", None), ("assistant", "b", "up"), ("user", "c", None), ("assistant", "d", "down"), ("user", "e", None)]
    rows = [{"messages": [{"role": role, "content": text} | ({"rating": vote} if vote else {}) for role, text, vote in turns]},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    checked = checked_rows(tmp_path, rows)
    assert [(row["messages"][-1]["content"], row["label"]) for row in checked.rows([0, 1])] == [("b", True), ("d", False)]
    assert checked.ledger.unvoted == 1 and not checked.unused


def test_votes_beside_turns_that_are_not_the_dialogue_are_asked_about(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "rating": "up"}]
    with pytest.raises(KitError, match="which column is the label"):
        checked_rows(tmp_path, [{"prompt": turns, "response": f"{i}.", "tools": turns} for i in range(4)])


def test_rows_of_another_shape_are_refused_by_name_and_not_counted_as_unvoted(tmp_path):
    turns = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}] for i in range(6)]
    rows = [{"messages": each, "label": bool(i % 2)} for i, each in enumerate(turns)]
    ledger = checked_rows(tmp_path, [*rows, {"prompt": "7?", "response": "7.", "rating": 1}]).ledger
    assert (ledger.refused, ledger.unvoted) == ({"missing column": 1}, 0)
    assert "prompt, response, rating" in ledger.text()


TEMPLATES = {  # a prompt, and its reply
    "ChatML": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>"),
    "Phi 4": ("<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>", "{}<|im_end|>"),
    "Llama 2": ("<s>[INST] {} [/INST]", " {} </s>"),
    "Llama 3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "{}<|eot_id|>"),
    "Llama 4": ("<|begin_of_text|><|header_start|>user<|header_end|>\n\n{}<|eot|><|header_start|>assistant<|header_end|>\n\n", "{}<|eot|>"),
    "Gemma": ("<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "{}<end_of_turn>"),
    "Phi 3": ("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>"),
    "DeepSeek": ("<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜>", "{}<｜end▁of▁sentence｜>"),
    "Command R": ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "{}<|END_OF_TURN_TOKEN|>"),
    "Granite": ("<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>", "{}<|end_of_text|>"),
    "HH": ("\n\nHuman: {}\n\nAssistant:", " {}"), "bold": ("**User:** {}\n**Assistant:**", " {}"), "headings": ("## User\n{}\n\n## Assistant\n", "{}"),
    "brackets": ("[User]: {}\n[Assistant]:", " {}"), "times": ("[2024-01-01 10:00] User: {}\n[10:01] Assistant:", " {}"),
    "tags": ("<user>{}</user>\n<assistant>", "{}</assistant>"), "roles": ('<turn role="user">{}</turn><turn role="assistant">', "{}</turn>"),
    "Exaone": ("[|user|]{}\n[|assistant|]", "{}[|endofturn|]"), "Nemotron": ("<extra_id_1>User\n{}\n<extra_id_1>Assistant\n", "{}"),
    "Guanaco": ("### Human: {}### Assistant:", " {}"), "copied": ("You said:\n{}\nChatGPT said:\n", "{}"), "capitals": ("USER\n{}\n\nASSISTANT\n", "{}"),
    "de": ("Nutzer: {}\nAssistent:", " {}"), "fr": ("Utilisateur : {}\nAssistant :", " {}"), "es": ("Usuario: {}\nAsistente:", " {}"),
    "pt": ("Usuário: {}\nAssistente:", " {}"), "it": ("Utente: {}\nAssistente:", " {}"), "zh": ("用户：{}\n助手：", "{}"),
    "ja": ("ユーザー：{}\nアシスタント：", "{}"), "ru": ("Пользователь: {}\nАссистент:", " {}"),
}


@pytest.mark.parametrize("before, after", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_and_transcripts_are_told_apart_split_or_whole(tmp_path, before, after):
    asked, told = before.format(ASK), after.format(TELL)
    assert one(tmp_path, asked, told) == [("user", ASK), ("assistant", TELL)]
    assert one(tmp_path, ASK, asked + told) == [("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("prompt", ["Q: {}\nA:", "Question: {}\n\nAnswer:", "Frage: {}\nAntwort: ", "User: {}\n\nFalcon:", "{}\nAssistant:",
                                    "**Human**: {}\n\n**Claude**:", "Instruct: {}\nOutput:", "问：{}\n\n答："])
def test_a_prompt_that_ends_where_the_reply_begins_is_the_question_alone(tmp_path, prompt):
    assert one(tmp_path, prompt.format(ASK), f" {TELL}") == [("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("prompt, reply, kind", [
    ("<|start|>user<|message|>{}<|end|><|start|>assistant", "{}<|return|>", "chat template"), ("{}", "{}<|user|>", "chat template"),
    ("GPT4 Correct User: {}<|end_of_turn|>GPT4 Correct Assistant:", "{}", "chat template"), ("Alice: {}\nBot:", "{}", "transcript"),
    ("{}", f"\n\nHuman: {ASK}\n\nAssistant:", "empty reply"), ("<reserved_106>{}<reserved_107>", "{}", "chat template"), ("]~b]user\n{}[e~[\n]~b]ai\n", "{}", "chat template"),
    ("{}", "{}<pad><pad>", "chat template"), ("[Round 1]\n\n问：{}\n\n答：", "{}", "chat template"),
    ("{}", '<details type="tool_calls" done="true"></details>\n{}', "words beside a call"),
    ("<|vision_start|><|image_pad|><|vision_end|>{}", "{}", "chat template"), ("<image_1> {}", "{}", "images"), ("<video>{}", "{}", "images"),
    ("![x](data:image/png;base64,iVBORw0KGgo=) {}", "{}", "images"), ("{}", "content='{}' additional_kwargs={{}}", "turns as text"),
    ("[HumanMessage(content='{}'), AIMessage(content='x')]", "{}", "turns as text"), ("- role: user\n  content: {}", "{}", "turns as text"),
    ("[{{'role': 'user', 'content': '{}'}}\n {{'role': 'user', 'content': 'x'}}]", "{}", "turns as text")])
def test_what_cannot_be_told_apart_is_refused_by_name(tmp_path, prompt, reply, kind):
    assert refused(tmp_path, prompt.format(ASK), reply.format(TELL)) == [kind]


@pytest.mark.parametrize("text", [
    "Set it so:\nUser: admin\nPassword: x", "Q: What is it?\nA: A bulb.\nQ: Where?\nA: In soil.", "x <| f |> y", "Note: the time is 10:30.",
    "## Input\nThe list.\n\n## Output\nIts sum.", "Translate: hello\nFrench:", '{"name": "a", "value": 1}', "[1, 2, 3]", '"quoted"',
    "Use <video controls> in HTML.", "<user><name>Bob</name></user>\nParse this.", "## AI\nA field of computing.", "## User\nWho logs in.", "<p>User: me</p>", "The system: a whole."])
def test_texts_that_only_look_alike_stay_as_they_are(text):
    assert turns_in(text, "assistant") is None and turns_in(text, "user") is None


REQUEST = {"model": "x", "messages": [{"role": "user", "content": ASK}]}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": TELL}}]}


@pytest.mark.parametrize("asked, told", [
    (REQUEST, ANSWER), (json.dumps(REQUEST), json.dumps(ANSWER)), (repr(REQUEST["messages"]), TELL), (json.dumps(json.dumps(REQUEST["messages"])), TELL),
    (repr([("human", ASK)]), TELL), ([["human", ASK]], TELL), ([{"role": "user", "parts": [{"text": ASK}]}], {"role": "model", "parts": [{"text": TELL}]}),
    ([{"author": {"role": "user"}, "content": {"content_type": "text", "parts": [ASK]}}], TELL), ([{"sender": "user", "text": ASK}], TELL)])
def test_turns_are_decoded_however_an_api_or_a_program_wrote_them(tmp_path, asked, told):
    assert one(tmp_path, asked, told) == [("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("name", ["images", "image_url", "imagePath", "attachments", "files", "videos", "audio", "media", "pixel_values", "photo"])
def test_what_is_no_text_is_never_left_out_without_a_word(tmp_path, name):
    assert refused(tmp_path, ASK, TELL, **{name: ["a.png"]}) == ["images"]
    assert refused(tmp_path, [{"role": "user", "content": ASK, name: ["a.png"]}], TELL) == ["images"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "rating": "up"}]
    rated = [{"messages": turns, name: ["a.png"]}, {"messages": turns}, {"messages": [turns[0], turns[1] | {"rating": "down"}]}]
    assert checked_rows(tmp_path, rated).ledger.refused == {"images": 1}
    assert one(tmp_path, ASK, TELL, **{name: []}) == [("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("part, kind", [({"type": "image", "source": {}}, "images"), ({"type": "file", "file": {}}, "images"),
                                        ({"type": "tool_use", "name": "w", "input": {}}, "function call"), ({"inlineData": {}}, "text")])
def test_parts_of_a_turn_that_are_no_text_are_refused_by_name(tmp_path, part, kind):
    assert refused(tmp_path, [{"role": "user", "content": [{"type": "text", "text": ASK}, part]}], TELL) == [kind]


def test_results_of_parallel_calls_stand_as_their_calls_do(tmp_path):
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": ""}} for name in "ab"]
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": None, "tool_calls": calls},
             {"role": "tool", "tool_call_id": "b", "content": "of b"}, {"role": "tool", "tool_call_id": "a", "content": "of a"}]
    made = one(tmp_path, turns, TELL)
    assert json.loads(made[1][1]) == [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}] and made[2] == ("observation", "of a\nof b")


def test_a_column_called_input_that_is_named_as_the_prompt_is_read_once(tmp_path):
    rows = [{"input": f"{i}?", "output": f"{i}.", "thumb": i % 2} for i in range(4)]
    for columns in ("", "prompt=input"):
        checked = checked_rows(tmp_path, rows, columns=columns)
        assert checked.rows([1])[0]["messages"][0]["content"] == "1?" and not checked.unused


def test_dialogues_of_questions_with_their_replies_are_turns(tmp_path):
    rows = [{"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": f"{i}."}], "label": i % 2} for i in range(4)]
    assert [turn["content"] for turn in checked_rows(tmp_path, rows).rows([3])[0]["messages"]] == ["a", "b", "c", "3."]


def test_of_several_nested_ratings_none_is_guessed(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "scores": {"quality": {"rating": [5, 1][i % 2]}, "safety": {"rating": [1, 5][i % 2]}}}
            for i in range(4)]
    with pytest.raises(KitError, match="several columns hold ratings: scores.quality.rating") as error:
        checked_rows(tmp_path, rows)
    assert "--columns label=scores.quality.rating, or" in error.value.remedy
    assert [row["label"] for row in checked_rows(tmp_path, rows, columns="label=scores.quality.rating").rows(range(4))] == [True, False] * 2


def test_scores_inside_a_pair_are_not_asked_about(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": {"response": f"{i} yes", "score": 8.5}, "rejected": {"response": f"{i} no", "score": 3.0}} for i in range(4)]
    checked = checked_rows(tmp_path, rows)
    assert [row["label"] for row in checked.rows([0, 1])] == [True, False] and checked.unused == {"chosen.score": 4, "rejected.score": 4}


def test_columns_with_a_comma_in_their_name_can_be_named(tmp_path):
    rows = [{"question, asked": f"{i}?", "answer": f"{i}.", "vote": i % 2} for i in range(4)]
    assert checked_rows(tmp_path, rows, columns="prompt=question, asked,reply=answer").ledger.rows_out == 4


def test_what_a_single_turn_holds_besides_its_words_is_named(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": {"role": "assistant", "content": f"{i}.", "reasoning_content": "hm"}, "label": i % 2} for i in range(4)]
    checked = checked_rows(tmp_path, rows)
    assert checked.rows([1])[0]["messages"][1]["content"] == "1." and checked.unused == {"completion[].reasoning_content": 4}


def test_an_error_about_the_label_names_the_column_that_holds_something_else(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "vote": ["so", "la la"][i % 2]} for i in range(4)]
    with pytest.raises(KitError) as error:
        checked_rows(tmp_path, rows)
    assert "--columns prompt=prompt,reply=response,label=vote" in error.value.remedy


@pytest.mark.parametrize("system", ["Be kind.", [{"type": "text", "text": "Be kind."}], {"role": "system", "content": "Be kind."}])
def test_a_system_prompt_comes_first_however_it_is_kept(tmp_path, system):
    assert one(tmp_path, ASK, TELL, system=system) == [("system", "Be kind."), ("user", ASK), ("assistant", TELL)]


@pytest.mark.parametrize("names", ["helpful unhelpful", "upvote downvote", "thumb_up thumb_down", "Likes Dislikes"])
def test_neither_for_nor_against_is_no_vote(tmp_path, names):
    up, down = names.split()
    votes = [(1, 0), (0, 1), (0, 0), (1, 0)]
    rows = [{"prompt": f"{i}?", "response": f"{i}.", up: ours, down: theirs, "attachments": "[]"} for i, (ours, theirs) in enumerate(votes)]
    checked = checked_rows(tmp_path, rows)
    assert [row["label"] for row in checked.rows(range(3))] == [True, False, True] and checked.ledger.unvoted == 1


def pairs(tmp_path, name, text):
    """(reply, label) of every row of a file."""
    (tmp_path / name).write_text(text)
    checked = checked_file(tmp_path / name)
    return [(row["messages"][-1]["content"], row["label"]) for row in checked.rows(range(len(checked.records)))]


ROWS = [{"prompt": f"{i}?", "response": f"{i}, yes.", "rating": ["up", "down"][i % 2]} for i in range(8)]
READ = [(f"{i}, yes.", i % 2 == 0) for i in range(8)]


@pytest.mark.parametrize("indent", [None, 1])
def test_every_page_of_an_api_is_read_and_not_the_first_alone(tmp_path, indent):
    pages = [json.dumps({"object": "list", "data": ROWS[start : start + 4], "next": start}, indent=indent) for start in (0, 4)]
    assert pairs(tmp_path, "pages.json", "\n".join(pages)) == READ
    lines = [json.dumps({**row, "results": [{"page": 1}]}) for row in ROWS]
    assert pairs(tmp_path, "rows.json", "\n".join(lines)) == READ, "a row with words of its own is no page"
    assert pairs(tmp_path, "ids.json", json.dumps({f"id-{row['prompt']}": row for row in ROWS})) == READ


def test_quotes_after_a_comma_and_a_blank_are_no_part_of_a_text(tmp_path):
    table = "".join(f'"{row["prompt"]}", "{row["response"]}", "{row["rating"]}"\n' for row in ROWS)
    assert pairs(tmp_path, "a.csv", f'"prompt", "response", "rating"\n{table}') == READ


@pytest.mark.parametrize("name", ["grade", "Note"])
def test_grades_of_which_one_may_be_the_best_are_asked_about(tmp_path, name):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", name: [1, 5, 2, 3][i % 4]} for i in range(8)]
    with pytest.raises(KitError, match="1 may be the best"):
        checked_rows(tmp_path, rows)
    assert checked_rows(tmp_path, rows, scale="1,2/3,4,5").labels.tolist() == [True, False] * 4
    assert checked_rows(tmp_path, rows, scale="1-5").labels.tolist() == [False, True, False, False] * 2


@pytest.mark.parametrize("reply, kind", [
    ("<think>\nhm", "empty reply"), ("<think>hm</think>", "empty reply"), ('<tool_call>\n{"name": "f"}\n</tool_call>', "chat template"),
    ("#NAME?", "text"), ("b'Put them in.'", "turns as text")])
def test_what_a_program_left_in_place_of_a_reply_is_refused_by_name(tmp_path, reply, kind):
    assert refused(tmp_path, ASK, reply) == [kind]
    assert one(tmp_path, ASK, "<think>hm</think>\nIn autumn.")[1][1] == "<think>hm</think>\nIn autumn."
    assert one(tmp_path, ASK, "- role: admin\n  name: x")[1][1] == "- role: admin\n  name: x"


def test_a_history_that_holds_the_question_or_the_reply_too_does_not_repeat_them(tmp_path):
    whole = [("user", "Hi"), ("assistant", "Hello"), ("user", ASK), ("assistant", TELL)]
    for end in (2, 3, 4):
        assert one(tmp_path, ASK, TELL, history=[{"role": role, "content": text} for role, text in whole[:end]]) == whole


def test_two_system_prompts_and_a_column_in_place_of_a_reply_are_refused(tmp_path):
    turns = [{"role": "system", "content": "One."}, {"role": "user", "content": ASK}]
    assert refused(tmp_path, turns, TELL, system="Two.") == ["turn order"]
    assert one(tmp_path, turns, TELL, system="One.")[0] == ("system", "One.")
    rows = [{"prompt": f"{i}?", "reply_a": "a", "reply_b": "b", "chosen": "reply_a", "rejected": "reply_b"} for i in range(4)]
    with pytest.raises(KitError, match="chosen names the column 'reply_a'"):
        checked_rows(tmp_path, rows)


@pytest.mark.parametrize("kind, change", [
    ("cut off", lambda i: {"response": f"{i} {'and so on ' * 100}"[:500] + "..."}), ("one prompt", lambda i: {"prompt": "You are a bot."}),
    ("garbled text", lambda i: {"response": "schÃ¶ne GrÃ¼ÃŸe"}), ("garbled text", lambda i: {"response": "Donâ€™t."}),
    ("garbled text", lambda i: {"response": "It&#39;s fine."}), ("garbled text", lambda i: {"response": "First.\\nSecond line."})])
def test_texts_that_an_export_spoilt_are_noted(tmp_path, kind, change):
    assert kind in checked_rows(tmp_path, [row | change(i) for i, row in enumerate(ROWS)]).ledger.noted
    assert not {"cut off", "one prompt", "garbled text"} & checked_rows(tmp_path, ROWS).ledger.noted.keys()


@pytest.mark.parametrize("names, more", [
    ("user_query ai_response feedback_rating", {"feedback_rating_raw": "x"}), ("prompt response feedbackScore", {}),
    ("Question Answer Satisfaction_Score", {}), ("query answer feedbacks", {}), ("Frage Antwort Hilfreich?", {})])
def test_dify_and_others_are_read_by_their_own_names(tmp_path, names, more):
    rows = [dict(zip(names.split(), row.values(), strict=True)) | more for row in ROWS]
    assert checked_rows(tmp_path, rows).labels.tolist() == [True, False] * 4


def test_files_beside_a_message_of_dify_are_refused(tmp_path):
    assert refused(tmp_path, ASK, TELL, message_files=[{"type": "image"}]) == ["images"]


def test_files_of_a_folder_on_different_scales_are_not_read_as_the_longest_one(tmp_path):
    for name, top in (("a.csv", 5), ("b.csv", 10)):
        lines = [f"{name} {i}?,{i}.,{i % top + 1}" for i in range(30)]
        (tmp_path / name).write_text("\n".join(["prompt,response,rating", *lines]))
    with pytest.raises(KitError, match=r"different scales(.|\n)*a.csv: ratings 1 to 5(.|\n)*b.csv: ratings 1 to 10(.|\n)*--scale=") as error:
        check.check(find.find(str(tmp_path), tmp_path))
    assert "0 is no vote" not in str(error.value)
    assert check.check(find.find(str(tmp_path), tmp_path), scale="1-10").facts()["rows out"] == 60
    (tmp_path / "b.csv").unlink()
    (tmp_path / "c.csv").write_text((tmp_path / "a.csv").read_text().replace("a.csv", "c.csv"))
    assert "1 to 5" in check.check(find.find(str(tmp_path), tmp_path)).facts()["scale"]
