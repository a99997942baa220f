"""A child where fork is unsafe: a fresh interpreter that reads its task from standard input."""

import json
import sys


def main() -> None:
    from dojo.judge import warm

    warm.preload()
    asked = json.load(sys.stdin)
    if asked["main"] == "child":
        from dojo.judge import child as room
    else:
        from dojo.judge import likeness as room
    room.main(room.Task(**asked["task"]), int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
