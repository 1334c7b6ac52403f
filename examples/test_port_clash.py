"""Two tests that use the same port; the first leaves its server running.

Plain pytest: the second fails with "Address already in use", and the blame falls on the wrong test.
With --isolate: the first one's server ends with it, and is named in a warning. Both pass.
"""

import subprocess
import sys

PORT = 38765
SERVER = f"""
import socket, time
server = socket.create_server(("127.0.0.1", {PORT}))
print("listening", flush=True)
time.sleep(3600)
"""


servers = []  # which nobody ever ends


def start_server():
    servers.append(subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True))
    return servers[-1].stdout.readline()


def test_first_uses_the_port_and_leaves_its_server_running():
    assert start_server() == "listening\n"


def test_second_finds_the_port_free():
    assert start_server() == "listening\n"
