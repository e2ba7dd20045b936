"""`jaxfed ARGUMENTS`, killed at its n-th operation on a file: killed.py N FOLDER ARGUMENTS.

Counted are what Python opens, makes, renames and removes in the folder; N = 0 counts to the end and
prints how many there were.
"""

import os
import signal
import sys

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}


def main() -> None:
    at, folder, count = int(sys.argv[1]), sys.argv[2], 0

    def noted(event, arguments):
        nonlocal count
        if event in EVENTS and folder in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    from jaxfed.cli import main as command

    sys.addaudithook(noted)
    command.main(sys.argv[3:])
    print(f"{count} operations")


if __name__ == "__main__":
    main()
