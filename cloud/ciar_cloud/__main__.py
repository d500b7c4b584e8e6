"""`ciar-cloud`, as it is started. Errors are one line on stderr and an exit code.

`health` begins without torch and the other commands: containers ask every few seconds.
"""

import sys

from ciar.errors import CiarError


def main() -> None:
    try:
        if sys.argv[1:2] == ["health"]:
            from ciar_cloud.probe import app
        else:
            from ciar_cloud.cli import app
        app()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
