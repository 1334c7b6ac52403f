"""A program in a sandbox of its own: what it may do is said in the call, and its end is a value.

Plain pytest: the fixture `sandbox` works there, too; it needs no option.
With --isolate: the same, and the test itself is isolated. With --isolate-backend=gvisor it is gVisor's kernel that answers
(`pytest --isolate-backend=gvisor -rP examples/test_program.py`).
"""


def test_program_is_told_which_kernel_it_runs_on(sandbox):
    outcome = sandbox.run(["uname", "-sr"], timeout=10, check=True)
    print("the program's kernel is", outcome.stdout)
