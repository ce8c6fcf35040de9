"""A client that asks one service without a pause and remembers how it was answered."""

import collections
import http.client
import json
import threading
import time
import urllib.error

# No answer: nobody listens, or whoever did was killed while it worked on the request.
NO_ANSWER = (OSError, http.client.HTTPException, urllib.error.URLError, json.JSONDecodeError)


class Asker:
    def __init__(self, cloud, host, bodies):
        self.cloud, self.host, self.bodies = cloud, host, bodies
        self.seconds, self.bad = [], []
        # How often each body was answered.
        self.answers = collections.Counter()
        # The data plane itself is being killed: a lost connection is no failure then.
        self.may_lose = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self):
        while not self._stop.is_set():
            excused, started = self.may_lose.is_set(), time.monotonic()
            try:
                status, _, body = self.cloud.get(self.host)
                if status == 200 and body in self.bodies:
                    self.seconds.append(time.monotonic() - started)
                    self.answers[body] += 1
                else:
                    self.bad.append((time.time(), status, body[:300]))
            except NO_ANSWER as error:
                if not (excused or self.may_lose.is_set()):
                    self.bad.append((time.time(), repr(error)))
                # Nobody listens: do not take the processor from whoever comes back.
                self._stop.wait(0.02)

    @property
    def good(self):
        return len(self.seconds)

    def p99(self, since=0):
        """The 99th percentile of the answers' seconds, leaving out the first `since` answers."""
        sample = sorted(self.seconds[since:])
        return sample[int(len(sample) * 0.99)]

    def stop(self):
        self._stop.set()
        self._thread.join()
