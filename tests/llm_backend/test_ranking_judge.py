"""The judge over HTTP, against a server on loopback that answers well, badly, late, or not at all."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("torch")

from llm_backend.ranking import Endpoint, JudgeRanker, RankingError, checked_scores
from llm_backend.ranking.judge_texts import read_verdict

PROMPTS, CANDIDATES = ["Say something long {first}.", "Again."], [["aa", "aaaa", "a"], ["a", "aaa", "aa"]]
LONGEST_FIRST = np.array([[0.5, 1.0, 0.0], [0.0, 1.0, 0.5]])


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def honest(question):
    """Prefers the longer of the two responses."""
    first, second = (part.split("\n\n")[0] for part in question.split("[Response ")[1:])
    gap = len(first) - len(second)
    return f"Longer is better.\n**Verdict: {'A' if gap > 0 else 'B' if gap < 0 else 'tie'}**"


def good(server, question):
    return 200, {}, completion(honest(question))


@contextmanager
def serving(behave):
    """A server whose ``behave(server, question)`` gives (status, headers, body). The header Cut ends the body in the
    middle; Drip sends a byte of it every so many seconds until the client gives up."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            server = self.server
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.asked.append((self.path, dict(self.headers), body))
                server.open_now += 1
                server.most_open = max(server.most_open, server.open_now)
            status, headers, content = behave(server, body["messages"][0]["content"])
            with server.lock:
                server.open_now -= 1
            try:
                self.send_response(status)
                cut, drip = headers.pop("Cut", None), headers.pop("Drip", None)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in b" " * 10_000 if drip else b"":
                    self.wfile.write(bytes([byte]))
                    if server.ended.wait(float(drip)):
                        break
                self.wfile.write(content[: len(content) // 2] if cut else content)
            except OSError:  # the client has given up, as it should
                pass
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.asked, server.open_now, server.most_open = threading.Lock(), [], 0, 0
    server.ended = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def judge_of(server, *, cache=None, concurrency=2, **settings):
    setting = {"timeout": 60.0, "first_wait": 0.01} | settings
    return JudgeRanker(Endpoint(url=server.url, model="m", **setting), cache=cache, concurrency=concurrency)


def test_an_honest_judge_ranks_by_its_preference() -> None:
    with serving(good) as server:
        judge = judge_of(server)
        np.testing.assert_array_equal(checked_scores(judge, PROMPTS, CANDIDATES), LONGEST_FIRST)
    assert {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
    for _, headers, body in server.asked:
        assert body["model"] == "m"
        assert body["temperature"] == 0.0
        assert "authorization" not in {name.lower() for name in headers}
    assert server.most_open <= 2
    questions = [body["messages"][0]["content"] for _, _, body in server.asked]
    assert len(set(questions)) == 12  # three pairs, two orders, two prompts
    assert sum("Say something long {first}." in question for question in questions) == 6  # braces stay what they are
    counts = {name: n for name, n in judge.counts.items() if n}
    assert counts == {"questions": 12, "requests": 12, "comparisons": 6, "wins": 6}


def test_a_preference_for_a_place_comes_out_as_ties() -> None:
    with serving(lambda server, question: (200, {}, completion("Verdict: A"))) as server:
        judge = judge_of(server)
        np.testing.assert_array_equal(judge.scores(PROMPTS, CANDIDATES), np.full((2, 3), 0.5))
    assert judge.counts["inconsistent"] == 6
    assert judge.counts["wins"] == 0


def test_ties_and_identical_candidates() -> None:
    with serving(good) as server:
        judge = judge_of(server)
        np.testing.assert_array_equal(judge.scores(["p"], [["ab", "cd", "ab"]]), [[0.5, 0.5, 0.5]])
    assert judge.counts["ties"] == 2
    assert judge.counts["identical"] == 1
    assert len(server.asked) == 2  # equal questions are asked once


def test_malformed_answers_are_counted_and_never_guessed() -> None:
    """One comparison of the first prompt gets no verdict in one order: both its candidates have no score."""

    def behave(server, question):
        if "[Response A]\naaaa\n" in question and "[Response B]\na\n" in question:
            return 200, {}, completion("A is better, I think: A.")
        return good(server, question)

    with serving(behave) as server:
        judge = judge_of(server)
        found = checked_scores(judge, PROMPTS, CANDIDATES)
    np.testing.assert_array_equal(found, [[0.5, np.nan, np.nan], LONGEST_FIRST[1]])
    assert judge.counts["malformed"] == 1
    assert judge.counts["undecided"] == 1
    assert judge.counts["no_verdict"] == 2
    assert judge.counts["retries"] == 0  # an answer that was paid for is not asked for again


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Verdict: A", "first"),
        ("why\n\nverdict: **b**.\n \n", "second"),
        ("**Verdict:** tie", "tie"),
        ("Verdict: [[B]]", "second"),
        ("Verdict: A\nor maybe not", None),
        ("Verdict: A or B", None),
        ("The verdict: A", None),
        ("Verdict: C", None),
        ("Verdict:", None),
        ("A", None),
        ("", None),
        (None, None),
    ],
)
def test_reading_a_verdict(answer, verdict) -> None:
    assert read_verdict(answer) == verdict


def test_content_that_is_no_text_is_no_verdict() -> None:
    with serving(lambda server, question: (200, {}, completion(None))) as server:
        judge = judge_of(server)
        assert np.isnan(judge.scores(["p"], [["a", "b"]])).all()
    assert judge.counts["malformed"] == 2


def first_time(failure):
    """Fails each question once, then answers well."""
    seen = set()

    def behave(server, question):
        with server.lock:
            new = question not in seen
            seen.add(question)
        return failure(server) if new else good(server, question)

    return behave


def never(server):
    server.ended.wait()
    return 200, {}, completion("Verdict: B")


def dripping(server):
    return 200, {"Content-Length": "100000", "Drip": "0.05"}, completion("Verdict: B")


SLOW = 1.5  # seconds: long for an answer from the same machine, even a busy one
PASSING = {
    "silent": (never, "no answer within 1.5 s"),
    "dripping": (dripping, "no answer within 1.5 s"),
    "429": (lambda _: (429, {"Retry-After": "0.05"}, b"slow down"), "status 429"),
    "500": (lambda _: (500, {}, b"oops"), "status 500"),
    "garbage": (lambda _: (200, {}, b"<html>not json"), "a body that is no chat completion: <html>not json"),
    "schema": (lambda _: (200, {}, b'{"answer": "Verdict: A"}'), "a body that is no chat completion"),
    "list": (lambda _: (200, {}, b"[]"), "a body that is no chat completion"),
    "truncated": (lambda _: (200, {"Cut": "1"}, completion("Verdict: A")), "RemoteProtocolError"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_passing_trouble_is_waited_out(kind) -> None:
    with serving(first_time(PASSING[kind][0])) as server:
        slow = {"timeout": SLOW, "concurrency": 6} if kind in ("silent", "dripping") else {}
        judge = judge_of(server, **slow)
        np.testing.assert_array_equal(judge.scores(PROMPTS[1:], CANDIDATES[1:]), LONGEST_FIRST[1:])
    assert judge.counts["retries"] == 6
    assert judge.counts["requests"] == 12


@pytest.mark.parametrize("kind", PASSING)
def test_an_endpoint_that_never_recovers_is_an_error_with_its_name(kind, tmp_path) -> None:
    """Two questions are answered, then it breaks: the error names the endpoint and how many answers are kept, and the
    file holds exactly these, whole."""
    failure, message = PASSING[kind]
    answered = []

    def behave(server, question):
        with server.lock:
            fine = len(answered) < 2
            answered.append(question) if fine else None
        return good(server, question) if fine else failure(server)

    cache = tmp_path / "answers.jsonl"
    slow = {"timeout": SLOW} if kind in ("silent", "dripping") else {}
    with serving(behave) as server:
        judge = judge_of(server, cache=cache, concurrency=1, retries=1, **slow)
        with pytest.raises(RankingError) as caught:
            judge.scores(PROMPTS, CANDIDATES)
    said = str(caught.value)
    assert f"the judge m at {server.url} failed 2 times in a row, last: {message}" in said
    assert f"2 of 12 answers are kept in {cache}" in said
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 2
    assert len(server.asked) == 4


def test_nobody_listening_is_an_error() -> None:
    with serving(good) as server:
        url = server.url
    judge = JudgeRanker(Endpoint(url=url, model="m", retries=0, timeout=2.0))
    with pytest.raises(RankingError, match=r"failed 1 times in a row, last: ConnectError: .*; 0 of 2 answers"):
        judge.scores(["p"], [["a", "b"]])


def test_a_refusal_is_not_retried() -> None:
    with serving(lambda server, question: (401, {}, b"bad key")) as server:
        judge = judge_of(server, concurrency=1)
        with pytest.raises(RankingError, match="refused with status 401: bad key; 0 of 12 answers are kept in memory"):
            judge.scores(PROMPTS, CANDIDATES)
    assert len(server.asked) == 1


def test_an_interrupted_ranking_asks_nothing_twice(tmp_path) -> None:
    """It breaks after five answers and a kill leaves half a line; the next ranker asks the other seven, a third none.
    Another model is another judge: it is asked everything."""

    def five_then_broken(server, question):
        return good(server, question) if len(server.asked) <= 5 or server.mended else (503, {}, b"")

    cache = tmp_path / "deep" / "answers.jsonl"
    with serving(five_then_broken) as server:
        server.mended = False
        with pytest.raises(RankingError, match="5 of 12 answers are kept in"):
            judge_of(server, cache=cache, concurrency=1, retries=0).scores(PROMPTS, CANDIDATES)
        with cache.open("a") as file:
            file.write('{"key": "abc", "ans')
        server.mended = True
        server.asked.clear()
        for questions in (7, 0):
            judge = judge_of(server, cache=cache)
            np.testing.assert_array_equal(judge.scores(PROMPTS, CANDIDATES), LONGEST_FIRST)
            assert len(server.asked) == questions
            assert (judge.counts["cached"], judge.counts["questions"]) == (12 - questions, 12)
            server.asked.clear()
        lines = [json.loads(line) for line in cache.read_text().splitlines()]
        assert len({line["key"] for line in lines}) == len(lines) == 12
        other = JudgeRanker(Endpoint(url=server.url, model="another"), cache=cache)
        other.scores(PROMPTS, CANDIDATES)
        assert len(server.asked) == 12


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(monkeypatch, tmp_path) -> None:
    def echoing(server, question):
        if server.refuse:
            return 403, {}, b"no access for " + server.asked[-1][1]["Authorization"].encode()
        return good(server, question)

    cache = tmp_path / "answers.jsonl"
    with serving(echoing) as server:
        server.refuse = False
        judge = judge_of(server, cache=cache, key_variable="JUDGE_TEST_KEY", concurrency=1)
        monkeypatch.delenv("JUDGE_TEST_KEY", raising=False)
        with pytest.raises(RankingError, match="the environment variable JUDGE_TEST_KEY is not set; it must hold"):
            judge.scores(PROMPTS[1:], CANDIDATES[1:])
        monkeypatch.setenv("JUDGE_TEST_KEY", "sk-secret")
        judge.scores(PROMPTS[1:], CANDIDATES[1:])
        assert server.asked[0][1]["Authorization"] == "Bearer sk-secret"
        server.refuse = True
        with pytest.raises(RankingError, match=r"refused with status 403: no access for Bearer \*\*\*;") as caught:
            judge.scores(PROMPTS, CANDIDATES)
    assert "sk-secret" not in cache.read_text() + repr(judge.__dict__) + repr(judge.endpoint) + str(caught.value)
    assert "sk-secret" not in repr(caught.traceback[-1].locals)


def test_retry_after_is_obeyed_within_limits() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    for header, limit, least in (("0.3", 5.0, 0.3), (format_datetime(soon), 0.2, 0.2), ("nonsense", 5.0, 0.01)):
        with serving(first_time(lambda _, header=header: (429, {"Retry-After": header}, b""))) as server:
            start = time.monotonic()
            judge_of(server, longest_wait=limit).scores(["p"], [["a", "bb"]])
            assert least <= time.monotonic() - start < 60.0


def test_what_is_refused(tmp_path) -> None:
    for setting, message in (
        ({"url": "ftp://x"}, "begins with http:// or https://, got 'ftp://x'"),
        ({"timeout": 0.0}, "timeout of a judge must be at least 0.001, got 0.0"),
        ({"retries": -1}, "retries of a judge must be at least 0, got -1"),
        ({"parameters": {"n": 3}}, "may not set model, messages, stream or n"),
    ):
        with pytest.raises(RankingError, match=message):
            Endpoint(**({"url": "http://x", "model": "m"} | setting))
    endpoint = Endpoint(url="http://x/v1/chat/completions/", model="m")
    assert endpoint.address == "http://x/v1/chat/completions"
    with pytest.raises(RankingError, match=r"must have \{second\} once, not 0 times"):
        JudgeRanker(endpoint, template="{prompt} {first}")
    with pytest.raises(RankingError, match="concurrency must be at least 1, got 0"):
        JudgeRanker(endpoint, concurrency=0)
    with pytest.raises(RankingError, match="it needs at least 2 for each prompt, got 1"):
        JudgeRanker(endpoint).scores(["p"], [["a"]])
    foreign = tmp_path / "answers.jsonl"
    foreign.write_text('{"key": "a", "answer": null}\n[1]\n')
    with pytest.raises(RankingError, match=r"line 2 of .*answers.jsonl is no answer of a judge"):
        JudgeRanker(endpoint, cache=foreign)
    assert foreign.read_text() == '{"key": "a", "answer": null}\n[1]\n'
