"""Kinds of hostile requests: what each sends, and how it treats its connection.

A kind is a function of a `Target`; it makes one request (some make a few connections for it) and returns what came back, as bytes."""

import gzip
import random
import socket
import struct
import time

KINDS = {}
# Those that take their time: run many at a time, beside the others.
SLOW_KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", " ")] = function
    return function


def slow_kind(function):
    SLOW_KINDS[function.__name__.replace("_", " ")] = function
    return function


class Target:
    """One door of the daemon, and a source of chance."""

    def __init__(self, door, address, token, seed):
        self.door, self.address, self.token = door, address, token
        self.random = random.Random(seed)

    def connect(self, timeout=10):
        family = socket.AF_UNIX if self.door == "unix" else socket.AF_INET
        connection = socket.socket(family)
        connection.settimeout(timeout)
        connection.connect(self.address)
        return connection

    def host(self):
        return b"localhost" if self.door == "unix" else b"127.0.0.1:%d" % self.address[1]

    def head(self, line, *fields, close=True):
        fields = [b"Host: " + self.host(), *fields] + ([b"Connection: close"] if close else [])
        return b"\r\n".join([line, *fields, b"", b""])

    def command(self, path, body, *fields, media_type=b"application/json"):
        fields = [b"Authorization: Bearer " + self.token, b"Content-Type: " + media_type, b"Content-Length: %d" % len(body), *fields]
        return self.head(b"POST " + path + b" HTTP/1.1", *fields) + body

    def exchange(self, data, half_close=False):
        """Sends, and reads until the other side has no more to say."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # Sent away before all was said: the answer may be there.
            return read_all(connection)


def read_all(connection, limit=1 << 22):
    answer = b""
    try:
        while len(answer) < limit:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
    except OSError:
        pass
    return answer


def bytes_of(target, length):
    return target.random.randbytes(length)


# What is no HTTP.


@kind
def garbage(target):
    return target.exchange(bytes_of(target, target.random.randint(1, 4096)) + b"\r\n\r\n", half_close=True)


@kind
def TLS_hello(target):
    return target.exchange(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes_of(target, 512), half_close=True)


@kind
def HTTP_2_preface(target):
    return target.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes_of(target, 18), half_close=True)


@kind
def HTTP_0_9(target):
    return target.exchange(b"GET /v1/status\r\n", half_close=True)


@kind
def unknown_version(target):
    version = target.random.choice([b"HTTP/9.9", b"HTTP/1.9", b"HTTP/0.0", b"http/1.1", b"HTTP/", b"ICY/1.0"])
    return target.exchange(b"GET /healthz " + version + b"\r\n\r\n", half_close=True)


@kind
def NUL_in_the_head(target):
    place = target.random.choice([b"GET /\0 HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", b"G\0T / HTTP/1.1\r\n\r\n", b"\0" * 2000 + b"\r\n\r\n"])
    return target.exchange(place, half_close=True)


@kind
def broken_line_ends(target):
    ends = [b"\n", b"\r", b"\n\r", b"\r\r\n"]
    return target.exchange(target.head(b"GET /healthz HTTP/1.1").replace(b"\r\n", target.random.choice(ends)), half_close=True)


@kind
def folded_fields(target):
    return target.exchange(target.head(b"GET /healthz HTTP/1.1", b"X-Long: a\r\n b\r\n\tc", b" Host : evil"), half_close=True)


# Too much of it.


@kind
def giant_URI(target):
    return target.exchange(target.head(b"GET /" + b"a" * target.random.randint(20_000, 200_000) + b" HTTP/1.1"))


@kind
def giant_field(target):
    return target.exchange(target.head(b"GET /healthz HTTP/1.1", b"X-Big: " + b"a" * target.random.randint(20_000, 1_000_000)))


@kind
def many_fields(target):
    return target.exchange(target.head(b"GET /healthz HTTP/1.1", *[b"A: b"] * target.random.randint(65, 5000)))


@kind
def giant_length(target):
    length = target.random.choice([b"1" * 15, b"18446744073709551615", b"9" * 40])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Content-Length: " + length, b"Authorization: Bearer " + target.token), half_close=True)


@kind
def giant_body(target):
    return target.exchange(target.command(b"/v1/resume", b" " * target.random.randint(70_000, 2_000_000)))


@kind
def giant_cookies(target):
    return target.exchange(target.head(b"GET /v1/status HTTP/1.1", *[b"Cookie: " + b"c" * 1000] * 14))


@kind
def giant_token(target):
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Authorization: Bearer " + b"a" * 15_000, b"Content-Length: 0"))


@kind
def giant_query(target):
    return target.exchange(target.head(b"GET /v1/status?" + b"&".join([b"a=%41"] * 2000) + b" HTTP/1.1"))


# Lengths that contradict each other.


def only_one_answer(answer):
    """The second request was inside the first one's body, whoever counts."""
    return answer if answer.count(b"HTTP/1.1 ") <= 1 else b"HTTP/1.1 599 smuggled\r\n\r\n"


SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@kind
def length_and_chunks(target):
    fields = [b"Content-Length: %d" % (len(SMUGGLED) + 5), b"Transfer-Encoding: chunked"]
    target.random.shuffle(fields)
    return only_one_answer(target.exchange(target.head(b"POST /v1/resume HTTP/1.1", *fields, close=False) + b"0\r\n\r\n" + SMUGGLED, half_close=True))


@kind
def two_lengths(target):
    fields = [b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED)]
    target.random.shuffle(fields)
    return only_one_answer(target.exchange(target.head(b"POST /v1/resume HTTP/1.1", *fields, close=False) + SMUGGLED, half_close=True))


@kind
def strange_lengths(target):
    length = target.random.choice([b"-1", b"+5", b"0x10", b"5, 5", b"1e3", b"", b" 5 5", b"\xd9\xa5"])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Content-Length: " + length) + b"{}   ", half_close=True)


@kind
def strange_transfer_codings(target):
    coding = target.random.choice([b"xchunked", b"chunked, chunked", b"gzip, chunked", b"chunked, identity", b"identity", b"\x0bchunked", b"\"chunked\""])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Transfer-Encoding: " + coding) + b"0\r\n\r\n" + SMUGGLED, half_close=True)


def chunked(target, chunks, path=b"/v1/resume"):
    fields = [b"Transfer-Encoding: chunked", b"Authorization: Bearer " + target.token, b"Content-Type: application/json"]
    return target.exchange(target.head(b"POST " + path + b" HTTP/1.1", *fields) + chunks, half_close=True)


@kind
def chunk_of_any_size(target):
    size = target.random.choice([b"ffffffffffffffffff", b"7fffffffffffffff", b"-1", b"g", b"", b"0x5", b" 5"])
    return chunked(target, size + b"\r\n{}\r\n0\r\n\r\n")


@kind
def chunk_extensions(target):
    return chunked(target, b"2;" + b"a=b;" * target.random.randint(1, 20_000) + b"\r\n{}\r\n0\r\n\r\n")


@kind
def chunk_that_does_not_end(target):
    return chunked(target, b"2\r\n{}XX0\r\n\r\n")


@kind
def chunk_trailers(target):
    return chunked(target, b"2\r\n{}\r\n0\r\n" + b"Trailer: x\r\n" * target.random.randint(1, 3000) + b"\r\n")


@kind
def ten_thousand_tiny_chunks(target):
    return chunked(target, b"1\r\n \r\n" * 10_000 + b"0\r\n\r\n")


# Bodies.


def body(target, text, path=b"/v1/resume"):
    return target.exchange(target.command(path, text if isinstance(text, bytes) else text.encode()))


@kind
def deep_JSON(target):
    depth = target.random.randint(200, 30_000)
    return body(target, target.random.choice(["[", '{"stage":', '{"a":[']) * min(depth, 60_000 // 9))


@kind
def huge_numbers(target):
    number = target.random.choice(["1e999999", "-" + "9" * 5000, "0." + "0" * 5000 + "1", "18446744073709551616", "1E+400", "NaN", "Infinity"])
    return body(target, '{"steps": %s}' % number, b"/v1/release")


@kind
def duplicate_keys(target):
    return body(target, '{"out": "/a", "out": 7, "out": "relative"}', b"/v1/export")


@kind
def bad_unicode_in_JSON(target):
    return body(target, target.random.choice([b'{"stage": "\\ud800"}', b'{"stage": "\xff\xfe"}', b'\xef\xbb\xbf{}', b'{"stage": "\\u00"}', "{}".encode("utf-16")]))


@kind
def wrong_types(target):
    return body(target, target.random.choice(["null", "[]", "7", '"x"', '{"stage": 7}', '{"stage": {}}', '{"stage": ["ingest"]}', '{"": ""}', "{]", "{}{}", "true"]))


@kind
def wrong_media_type(target):
    media_type = target.random.choice([b"text/html", b"application/xml", b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b"\xff", b"a/b/c"])
    return target.exchange(target.command(b"/v1/resume", b"{}", media_type=media_type))


@kind
def compressed_bomb(target):
    bomb = gzip.compress(b" " * 10_000_000)
    return target.exchange(target.command(b"/v1/corpora/pushed/documents", bomb, b"Content-Encoding: gzip", media_type=b"text/plain"))


@kind
def broken_documents(target):
    lines = [b"{", b"\xff\xfe", b'{"text": 7}', b'{"text": "\\ud800"}', b"[]", b"\0" * 100, b'{"text": ""}', b'{"no": "text"}']
    return target.exchange(target.command(b"/v1/corpora/pushed/documents", b"\n".join(target.random.choices(lines, k=50)), media_type=b"application/jsonl"))


@kind
def strange_keys_of_pushes(target):
    key = target.random.choice([b"\xff", b"k" * 256, b"", b"\t", b"a\x7f"])
    return target.exchange(target.command(b"/v1/corpora/pushed/documents", b"text", b"Idempotency-Key: " + key, media_type=b"text/plain"))


# Heads that ask for what is not to be had.


@kind
def wrong_methods(target):
    method = target.random.choice([b"TRACE", b"CONNECT", b"PROPFIND", b"BREW", b"OPTIONS", b"PATCH", b"get", b"A" * 500, b"G\xc3\x8bT", b"DELETE"])
    return target.exchange(target.head(method + b" /v1/status HTTP/1.1"), half_close=True)


@kind
def foreign_host(target):
    host = target.random.choice([b"evil.example", b"", b"localhost:1", b"127.0.0.1@evil.example", b"[::1", b"a" * 3000, b"localhost\xff"])
    return target.exchange(b"GET /v1/status HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n", half_close=True)


@kind
def two_hosts(target):
    return target.exchange(target.head(b"GET /v1/status HTTP/1.1", b"Host: evil.example"))


@kind
def foreign_origin(target):
    origin = target.random.choice([b"null", b"http://evil.example", b"file://", b"http://localhost.evil.example", b"\xff"])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Origin: " + origin, b"Content-Length: 0"))


@kind
def absolute_and_other_forms(target):
    form = target.random.choice([b"GET http://evil.example/v1/status", b"GET *", b"CONNECT evil.example:443", b"GET //evil.example/", b"GET ?", b"GET #", b"OPTIONS *", b"GET http://", b"GET a"])
    return target.exchange(target.head(form + b" HTTP/1.1"), half_close=True)


@kind
def path_traversal(target):
    path = target.random.choice([b"/../../etc/passwd", b"/v1/../metrics", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/corpora/..%2f..%2fetc/documents", b"/v1/operations/../status", b"/./healthz", b"/v1//status", b"\\..\\..\\windows"])
    return target.exchange(target.head(target.random.choice([b"GET ", b"POST "]) + path + b" HTTP/1.1", b"Content-Length: 0"), half_close=True)


@kind
def percent_encodings(target):
    name = target.random.choice([b"%", b"%2", b"%zz", b"%00", b"%ff%fe", b"%c0%af", b"%25%32%65", b"%f0%9f%92%a9", b"%ed%a0%80", b"%0d%0aSet-Cookie:a"])
    return target.exchange(target.head(b"POST /v1/corpora/" + name + b"/pause HTTP/1.1", b"Authorization: Bearer " + target.token, b"Content-Length: 0"))


@kind
def bad_UTF_8_in_the_head(target):
    return target.exchange(target.head(b"GET /\xff\xfe\xc0 HTTP/1.1", b"X-\xff: \xfe"), half_close=True)


@kind
def wrong_tokens(target):
    token = target.random.choice([b"Bearer ", b"Bearer x", b"Basic YTpi", b"Bearer " + target.token[:-1], b"Bearer " + target.token + b"\xff", b"\xff", b"Bearer\t" + target.token])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Authorization: " + token, b"Content-Length: 0"))


@kind
def strange_preconditions(target):
    tag = target.random.choice([b'"', b"\xff", b"W/", b'"1", ' * 500, b'"999999999999999999999999999"', b"'1'"])
    return target.exchange(target.command(b"/v1/resume", b"{}", b"If-Match: " + tag, b"Prefer: respond-async;;=,,\xff"))


@kind
def websocket_upgrade(target):
    fields = [b"Upgrade: websocket", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Version: 13", b"Connection: Upgrade"]
    return target.exchange(target.head(b"GET /v1/events HTTP/1.1", *fields, close=False).replace(b"/v1/events", b"/v1/status") + b"\x81\x05hello", half_close=True)


@kind
def HTTP_2_upgrade(target):
    return target.exchange(target.head(b"GET /v1/status HTTP/1.1", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Connection: Upgrade, HTTP2-Settings", close=False), half_close=True)


@kind
def expects_to_go_on(target):
    expectation = target.random.choice([b"100-continue", b"200-ok", b"\xff"])
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Expect: " + expectation, b"Content-Length: 5"), half_close=True)


@kind
def ranges(target):
    return target.exchange(target.head(b"GET /metrics HTTP/1.1", b"Range: bytes=" + b"0-1," * 2000, b"Accept-Encoding: " + b"gzip;q=0.1," * 100))


# Connections that end strangely.


@kind
def many_requests_at_once(target):
    return target.exchange(target.head(b"GET /healthz HTTP/1.1", close=False) * target.random.randint(2, 200) + target.head(b"GET /healthz HTTP/1.1"))


@kind
def half_closed_after_the_request(target):
    return target.exchange(target.head(b"GET /v1/status HTTP/1.1"), half_close=True)


@kind
def half_closed_in_the_head(target):
    return target.exchange(b"GET /v1/status HTTP/1.1\r\nHost: loc", half_close=True)


@kind
def half_closed_in_the_body(target):
    return target.exchange(target.head(b"POST /v1/resume HTTP/1.1", b"Content-Length: 100", b"Authorization: Bearer " + target.token) + b"{", half_close=True)


def reset(connection):
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@kind
def reset_at_once(target):
    reset(target.connect())
    return b""


@kind
def reset_after_the_request(target):
    connection = target.connect()
    connection.sendall(target.random.choice([target.head(b"GET /metrics HTTP/1.1"), target.command(b"/v1/resume", b"{}")]))
    reset(connection)
    return b""


@kind
def reset_in_the_body(target):
    connection = target.connect()
    connection.sendall(target.command(b"/v1/corpora/pushed/documents", b"x" * 5000, media_type=b"text/plain")[:-1000])
    reset(connection)
    return b""


@kind
def reset_in_the_answer(target):
    connection = target.connect()
    connection.sendall(target.head(b"GET /metrics HTTP/1.1", close=False) * 20)
    connection.recv(10)
    reset(connection)
    return b""


@kind
def reader_of_events_that_leaves(target):
    connection = target.connect()
    connection.sendall(target.head(b"GET /v1/events HTTP/1.1"))
    answer = connection.recv(12)
    reset(connection)
    return answer


# Those that take their time. Each gives the connections it holds and what is sent to them at each tick of a second.


def until_sent_away(connections, tick, limit_seconds):
    """Ticks until the other side has closed all; returns what each got."""
    answers = {connection: b"" for connection in connections}
    open_connections, deadline = list(connections), time.monotonic() + limit_seconds
    while open_connections and time.monotonic() < deadline:
        time.sleep(1)
        for connection in list(open_connections):
            try:
                tick(connection)
            except OSError:
                pass  # Sent away: the reason may be there to read.
            try:
                connection.settimeout(0.001)
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                piece = b""
            answers[connection] += piece
            if not piece:
                open_connections.remove(connection)
    for connection in open_connections:
        answers[connection] += b"HTTP/1.1 598 not sent away\r\n\r\n"
    for connection in connections:
        connection.close()
    return list(answers.values())


def opened(target, count, data):
    connections = []
    for _ in range(count):
        connection = target.connect()
        connection.sendall(data)
        connections.append(connection)
    return connections


@slow_kind
def slow_heads(target, count):
    return until_sent_away(opened(target, count, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "), lambda connection: connection.sendall(b"a"), 60)


@slow_kind
def slow_bodies(target, count):
    head = target.head(b"POST /v1/resume HTTP/1.1", b"Content-Length: 1000", b"Authorization: Bearer " + target.token)
    return until_sent_away(opened(target, count, head), lambda connection: connection.sendall(b" "), 60)


@slow_kind
def slow_documents(target, count):
    head = target.command(b"/v1/corpora/pushed/documents", b"x" * 10_000, media_type=b"text/plain")[:-9_000]
    return until_sent_away(opened(target, count, head), lambda connection: connection.sendall(b"x"), 90)


@slow_kind
def idle_connections(target, count):
    return until_sent_away(opened(target, count, b""), lambda _: None, 60)


@slow_kind
def idle_after_an_answer(target, count):
    return until_sent_away(opened(target, count, target.head(b"GET /healthz HTTP/1.1", close=False)), lambda _: None, 60)


@slow_kind
def slow_readers(target, count):
    """Ask for much and read nothing: sent away when the socket has been full for a minute."""
    connections = opened(target, count, target.head(b"GET /metrics HTTP/1.1", close=False) * 60)
    time.sleep(75)
    answers = []
    for connection in connections:
        answers.append(read_all(connection)[:12])
        connection.close()
    return answers


@slow_kind
def events_that_nobody_reads(target, count):
    connections = opened(target, count, target.head(b"GET /v1/events HTTP/1.1"))
    time.sleep(20)
    answers = [connection.recv(12) for connection in connections]
    for connection in connections:
        connection.close()
    return answers


@slow_kind
def a_thousand_connections(target, count):
    """More than a door has places; whoever has none is told so."""
    answers, connections = [], []
    for _ in range(count):
        try:
            connections.append(target.connect(timeout=2))
        except OSError:
            answers.append(b"")
    for connection in connections:
        try:
            connection.settimeout(0.01)
            answers.append(connection.recv(4096))
        except OSError:
            answers.append(b"")
    for connection in connections:
        connection.close()
    return answers
