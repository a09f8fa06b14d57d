"""A real HTTP server on 127.0.0.1 that does what servers do on bad days; for tests of fetching."""

import hashlib
import itertools
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from oodbench.datasets.fetching.download import Patience

BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = f"md5:{hashlib.md5(BODY).hexdigest()}"
QUICK = Patience(connect=2, read=0.3, retries=2, headway=50_000, pause=0.01, longest_pause=0.05)


class Server(ThreadingHTTPServer):
    """Serves ``body`` under every path. ``script`` says how, a function a request; after its end, as a good server does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.script, self.asked, self.released = BODY, [], [], threading.Event()
        self.usual = good  # how it serves after the end of the script
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):  # a client that hangs up is part of the tests
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        (self.server.script.pop(0) if self.server.script else self.server.usual)(self, self.server.body)

    def log_message(self, *_):
        pass

    def start(self, status, **headers):
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def begin_of(handler, body):
    """Where the range starts that is asked for, and the headers that a good server answers with."""
    asked = handler.headers.get("Range")
    if asked is None or handler.headers.get("If-Range", '"one"') != '"one"':
        return 0, 200, {"ETag": '"one"'}
    begin = int(asked.removeprefix("bytes=").removesuffix("-"))
    if begin >= len(body):
        return begin, 416, {"Content_Range": f"bytes */{len(body)}"}
    return begin, 206, {"ETag": '"one"', "Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}


def good(handler, body):
    begin, status, headers = begin_of(handler, body)
    handler.start(status, Content_Length=max(len(body) - begin, 0), **headers)
    handler.wfile.write(body[begin:])


def whole(handler, body):
    """Ignores ranges."""
    handler.start(200, Content_Length=len(body))
    handler.wfile.write(body)


def cut(count):
    """Ends after so many bytes."""

    def serve(handler, body):
        begin, status, headers = begin_of(handler, body)
        handler.start(status, Content_Length=len(body) - begin, **headers)
        handler.wfile.write(body[begin : begin + count])

    return serve


def slowly(pause):
    """Waits before each piece."""

    def serve(handler, body):
        begin, status, headers = begin_of(handler, body)
        handler.start(status, Content_Length=len(body) - begin, **headers)
        for place in range(begin, len(body), 2**16):
            time.sleep(pause)
            handler.wfile.write(body[place : place + 2**16])

    return serve


def stall(count, pause=None):
    """Sends so many bytes, and then none, or one in a while."""

    def serve(handler, body):
        begin, status, headers = begin_of(handler, body)
        handler.start(status, Content_Length=len(body) - begin, **headers)
        handler.wfile.write(body[begin : begin + count])
        handler.wfile.flush()
        for place in itertools.count(begin + count):
            if handler.server.released.wait(pause):
                break
            handler.wfile.write(body[place : place + 1])
            handler.wfile.flush()

    return serve


def status(code, **headers):
    return lambda handler, body: handler.start(code, Content_Length=0, **headers)


def redirect(where):
    return status(302, Location=where)


def stating(length):
    """Lies about the length."""

    def serve(handler, body):
        handler.start(200, Content_Length=length)
        handler.wfile.write(body)

    return serve


def other(handler, body):
    wrong = bytes(len(body))
    begin, code, headers = begin_of(handler, body)
    handler.start(code, Content_Length=len(body) - begin, **headers)
    handler.wfile.write(wrong[begin:])


def other_range(handler, body):
    handler.start(206, Content_Length=len(body), Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")
    handler.wfile.write(body)


def of_unknown_length(handler, body):
    """The range that is asked for, of a file whose length it does not tell."""
    begin, code, headers = begin_of(handler, body)
    stated = {"Content_Range": f"bytes {begin}-{len(body) - 1}/*"} if code == 206 else {}
    handler.start(code, Content_Length=len(body) - begin, **headers | stated)
    handler.wfile.write(body[begin:])


def page(handler, body):
    """Asks to sign in, whatever is asked for."""
    sign_in = b"<html>Sign in first</html>"
    handler.start(200, Content_Length=len(sign_in))
    handler.wfile.write(sign_in)


def chunked(handler, body):
    """States no length."""
    handler.start(200, Transfer_Encoding="chunked")
    for start in range(0, len(body), 100_000):
        piece = body[start : start + 100_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def ranges(server):
    """The range that each request asked for."""
    return [headers.get("Range") for _, headers in server.asked]


@contextmanager
def serving():
    """A ``Server`` that serves."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
