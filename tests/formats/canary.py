"""Named by the hostile files; whoever imports a name from here and calls it is caught."""

SUNG: list[object] = []


def sing(*arguments: object, **keywords: object) -> str:
    SUNG.append((arguments, keywords))
    return "sung"


class Bird:
    """Every way in which a pickle can run a class's code."""

    def __new__(cls, *arguments, **keywords):
        sing("new")
        return super().__new__(cls)

    def __init__(self, *arguments, **keywords):
        sing("init")

    def __setstate__(self, state):
        sing("setstate")

    def __setitem__(self, key, value):
        sing("setitem")

    def append(self, item):
        sing("append")

    def extend(self, items):
        sing("extend")

    def __hash__(self):
        sing("hash")
        return 0
