from __future__ import annotations

from typing import assert_type

import msgspec
import pytest

from bus import BadMessage, CallError, Done, Message, Request, message_name
from bus.schema import reply_decoder, reply_type, request_decoder
from tests.bus import vocabulary
from tests.bus.vocabulary import AnswerKept, Echo, Keep, Tell, Text


class LookupHTTPStatus(Request[Done], frozen=True):
    """A name with an abbreviation in it."""


class EchoTwice(Echo, frozen=True, tag="echo_twice"):
    """A request derived from another one."""

    again: str = ""


def test_a_message_goes_by_its_name_in_snake_case() -> None:
    assert message_name(Echo) == "echo"
    assert message_name(AnswerKept) == "answer_kept"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Keep("x"))) == ["keep", "x"]


def test_abbreviations_stay_together_in_a_name() -> None:
    assert message_name(LookupHTTPStatus) == "lookup_httpstatus"


def test_a_request_names_its_reply_type_and_a_notice_has_none() -> None:
    assert reply_type(Echo) is Text
    assert reply_type(AnswerKept) is Done
    assert reply_type(Tell) is None


def test_a_request_derived_from_another_has_its_reply_type() -> None:
    assert reply_type(EchoTwice) is Text
    assert message_name(EchoTwice) == "echo_twice"


def test_a_message_without_a_reply_type_is_refused() -> None:
    class Neither(Message, frozen=True):
        """Neither a request nor a notice."""

    with pytest.raises(TypeError, match=r"Neither must derive from Request\[ReplyType\]"):
        reply_type(Neither)


def test_one_decoder_reads_every_message_of_a_vocabulary_as_its_own_class() -> None:
    decode = request_decoder(vocabulary.ALL).decode
    for message in (Echo("a"), Keep("b"), AnswerKept((1, 0)), Tell("c")):
        assert decode(msgspec.msgpack.encode(message)) == message


def test_one_decoder_reads_a_vocabulary_of_a_single_message() -> None:
    assert request_decoder([Echo]).decode(msgspec.msgpack.encode(Echo("a"))) == Echo("a")


def test_a_reply_is_decoded_as_the_type_its_request_names() -> None:
    reply = reply_decoder(Echo).decode(msgspec.msgpack.encode(Text("a")))
    assert reply == Text("a")
    with pytest.raises(msgspec.ValidationError):
        reply_decoder(Echo).decode(msgspec.msgpack.encode([1]))


def test_a_reader_of_an_older_message_overlooks_fields_it_does_not_know() -> None:
    body = msgspec.msgpack.encode(["echo", "text", "a field of a later release"])
    assert request_decoder([Echo]).decode(body) == Echo("text")


def test_an_error_code_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="'bad_message' is declared by"):

        class SecondOfItsCode(CallError):
            code = BadMessage.code


def test_the_type_checker_follows_a_request_to_its_reply() -> None:
    def reply_of(request: Request[Text]) -> Text:
        return Text("")

    assert_type(reply_of(Echo("a")), Text)
