"""The way an endpoint really answers, found among servers that refuse, pass over and honour fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import SellerError
from outlay.labels.llm.bodies import PATHS, Settings, Way, WayName, most_tokens
from outlay.labels.llm.prompts import Guideline
from outlay.labels.llm.ways import MOST_PROBES, PROBE_TOKENS, WAYS, WAYS_OF, Probe, next_probe

SPAM = Guideline("classification", ("spam", "ham"), ("message",), "Is it spam?")
PARTS = Guideline("entities", ("Action", "Body part"), ("line",))
FREE = Guideline("generation", (), ("question",))
ASKED = Settings("m", max_answer_tokens=9)

Body = Mapping[str, Any]
Handler = Callable[[Body], tuple[int, Any]]
Server = dict[str, Handler]


def refused(message: str, status: int = 400) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


def chat_reply(content: Any, **more: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"content": content}, "finish_reason": "stop", **more}]}


def chat(*, schema: bool = True, most: int = 20, lists: bool = True, temperature: bool = True) -> Handler:
    """A chat server: refuses what it says it refuses, and passes over what it does not know."""

    def answer(body: Body) -> tuple[int, Any]:
        if not temperature and "temperature" in body:
            return refused("Unsupported value: 'temperature' does not support 0.0 with this model.")
        if body.get("top_logprobs", 0) > most:
            return refused(
                f"top_logprobs must be at most {most}" if most else "You are not allowed to request logprobs"
            )
        bound = body.get("response_format") if schema else None
        text = "apple"
        if bound:
            properties = bound["json_schema"]["schema"]["properties"]
            text = (
                '{"entities": [{"ty'
                if "entities" in properties
                else json.dumps({"label": properties["label"]["enum"][0]})
            )
        listed = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": []}]}
        return chat_reply(text, **({"logprobs": listed} if lists and body.get("logprobs") else {}))

    return answer


def decisions(body: Body) -> tuple[int, Any]:
    choices = [each["value"] for each in body["questions"][0]["choices"]]
    pairs = [{"value": value, "probability": 1 / len(choices)} for value in choices]
    return 200, {"answers": [{"type": "choice", "choice": choices[0], "confidence": 0, "probabilities": pairs}]}


def systemone(body: Body) -> tuple[int, Any]:
    options = list(body["questions"]["label"]["criteria"])
    values = {each: 1 / len(options) for each in options}
    return 200, {"answers": {"label": {"type": "choice", "choice": options[0], "probabilities": values}}}


def nothing(body: Body) -> tuple[int, Any]:
    return 404, "404 page not found"


CHAT = PATHS["chat"]


def find(
    server: Server, guideline: Guideline = SPAM, wanted: Any = "auto", asked: Settings = ASKED
) -> tuple[Way, list[Probe]]:
    """Run the probes against a server, as a seller does."""
    probes: list[Probe] = []
    answered: list[tuple[int, bytes]] = []
    while isinstance(step := next_probe(guideline, asked, wanted, answered), Probe):
        assert step == next_probe(guideline, asked, wanted, answered)
        probes.append(step)
        assert len(probes) <= MOST_PROBES
        assert most_tokens(step.body).output <= max(asked.max_answer_tokens, PROBE_TOKENS)
        status, document = server.get(step.path, nothing)(step.body)
        answered.append((status, (document if isinstance(document, str) else json.dumps(document)).encode()))
    return step, probes


@pytest.mark.parametrize(
    ("server", "way", "n_probes"),
    [
        ({"/decisions": decisions, CHAT: chat()}, Way("decisions"), 1),
        ({"/systemone": systemone, CHAT: chat(schema=False, lists=False)}, Way("systemone"), 2),
        ({CHAT: chat()}, Way("schema", 20), 3),
        ({CHAT: chat(lists=False)}, Way("schema", 0), 3),
        ({CHAT: chat(most=5)}, Way("schema", 5), 4),
        ({CHAT: chat(most=0)}, Way("schema", 0), 5),
        ({CHAT: chat(most=0, temperature=False)}, Way("schema", 0, temperature=False), 6),
        ({CHAT: chat(schema=False)}, Way("chat"), 4),
        ({CHAT: chat(schema=False, temperature=False)}, Way("chat", temperature=False), 6),
    ],
)
def test_the_best_way_that_is_really_there(server: Server, way: Way, n_probes: int) -> None:
    found, probes = find(server)
    assert found == way
    assert len(probes) == n_probes


def test_a_server_that_says_200_to_everything_has_no_decisions() -> None:
    page = {path: lambda body: (200, "<html>Welcome</html>") for path in ("/decisions", "/systemone")}
    assert find({**page, CHAT: chat()})[0] == Way("schema", 20)
    talkative = {path: lambda body: chat_reply("ham") for path in ("/decisions", "/systemone")}
    assert find({**talkative, CHAT: chat()})[0] == Way("schema", 20)

    def sure(body: Body) -> tuple[int, Any]:
        return 200, {"answers": [{"type": "choice", "choice": "ham", "probabilities": []}]}

    found, probes = find({"/decisions": sure, CHAT: chat()})
    assert (found.name, len(probes)) == ("schema", 3)


def test_a_model_that_likes_objects_is_not_taken_for_one_that_a_schema_binds() -> None:
    for said in (
        '{"answer": "apple"}',
        '"spam"',
        "spam",
        '{"label": "apple"}',
        '```json\n{"label": "spam"}\n```',
        None,
        "",
    ):
        assert find({CHAT: lambda body, said=said: chat_reply(said)})[0] == Way("chat")


def test_the_word_asked_for_is_in_no_label() -> None:
    fruit = Guideline("classification", ("Apple", "river bank"), ("t",))
    probe = find({CHAT: chat(schema=False)}, fruit)[1][2]
    assert probe.body["messages"][0]["content"] == "Write the word seven and nothing else."


def test_entities_and_free_text_have_fewer_ways() -> None:
    assert find({CHAT: chat()}, PARTS) == (Way("schema"), [find({CHAT: chat()}, PARTS)[1][0]])
    assert find({CHAT: chat(schema=False)}, PARTS)[0] == Way("chat")
    assert find({CHAT: chat()}, FREE)[0] == Way("chat")
    for guideline in (PARTS, FREE):
        for name in set(WAYS) - set(WAYS_OF[guideline.kind]):
            with pytest.raises(SellerError, match=f"{guideline.kind} cannot be answered by {name}"):
                next_probe(guideline, ASKED, name, [])


@pytest.mark.parametrize("name", WAYS)
def test_a_way_named_by_hand_is_the_only_one_tried(name: WayName) -> None:
    server = {"/decisions": decisions, "/systemone": systemone, CHAT: chat()}
    found, probes = find(server, wanted=name)
    assert found.name == name
    assert [probe.path for probe in probes] == [PATHS[name]]
    with pytest.raises(SellerError, match=rf"does not answer by {name} \({name}: status 404, .*page not found"):
        find({}, wanted=name)


def test_a_way_that_is_not_there_says_why() -> None:
    with pytest.raises(SellerError, match="passes over the schema and writes 'apple'") as told:
        find({CHAT: chat(schema=False)}, wanted="schema")
    assert "choose auto or chat" in str(told.value)
    with pytest.raises(SellerError, match="has no way to answer") as told:
        find({CHAT: lambda body: refused("The model `m` does not exist", 404)})
    assert "The model `m` does not exist" in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(SellerError, match="raise max_answer_tokens"):
        find({CHAT: lambda body: chat_reply("", finish_reason="length")}, wanted="chat")
    with pytest.raises(SellerError, match="'guess' is no way"):
        next_probe(SPAM, ASKED, "guess", [])  # type: ignore[arg-type]


def test_a_key_that_is_not_taken_ends_the_search() -> None:
    asked = []

    def no(body: Body) -> tuple[int, Any]:
        asked.append(body)
        return refused("Incorrect API key provided", 401)

    with pytest.raises(SellerError, match="does not take the key"):
        find(dict.fromkeys(PATHS.values(), no))
    assert len(asked) == 1


def test_no_row_is_sent_and_reasoning_has_room() -> None:
    _, probes = find({CHAT: chat(schema=False)}, asked=Settings("m", max_answer_tokens=2000))
    assert {probe.body["max_completion_tokens"] for probe in probes[2:]} == {2000}
    assert [probe.body["model"] for probe in probes] == ["m"] * 4
    assert json.loads(probes[0].body["input"][-1]["content"]) == {"message": "a made-up text"}


@given(
    st.lists(st.tuples(st.sampled_from([200, 400, 404, 422, 500, 503]), st.binary(max_size=40)), max_size=MOST_PROBES)
)
@settings(max_examples=60, deadline=None)
def test_any_answers_lead_to_an_end(answered: list[tuple[int, bytes]]) -> None:
    given_back = iter(answered)
    seen: list[tuple[int, bytes]] = []
    for _ in range(MOST_PROBES + 1):
        try:
            step = next_probe(SPAM, ASKED, "auto", seen)
        except SellerError:
            return
        if isinstance(step, Way):
            return
        seen.append(next(given_back, (400, b'{"error": {"message": "temperature and top_logprobs"}}')))
    pytest.fail("more probes than there may be")
